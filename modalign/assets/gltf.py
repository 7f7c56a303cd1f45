"""One mesh with one material as a binary glTF 2.0 file.

trimesh writes vertex colours in eight bits, which is too coarse for dark linear light, and without
a material, which glTF defines as polished metal: such a mesh is black without surroundings.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Source: glTF 2.0 specification, 3.6.2.2 (component types), 5.11.4 (targets), 4.4 (GLB chunks).
COMPONENTS = {"float32": 5126, "uint32": 5125, "uint16": 5123}
SHAPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
VERTICES, INDICES = 34962, 34963
LINEAR, MIPMAPPED, CLAMPED = 9729, 9987, 33071


def glb(
    faces: NDArray[np.int64],
    attributes: dict[str, NDArray[Any]],
    *,
    metallic: float = 0.0,
    roughness: float = 1.0,
    png: bytes | None = None,
) -> bytes:
    """The file of faces (F, 3) and attributes (V, width) by their glTF names.

    Attributes are float32, or uint16 that stand for 0..1; rows take multiples of four bytes. `png`
    is the base colour texture, addressed by TEXCOORD_0.
    """
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    content = bytearray()

    def append(chunk: bytes, **about: int) -> int:
        """The index of a new buffer view that holds `chunk`."""
        content.extend(b"\0" * (-len(content) % 4))
        views.append({"buffer": 0, "byteOffset": len(content), "byteLength": len(chunk), **about})
        content.extend(chunk)
        return len(views) - 1

    def accessor(array: NDArray[Any], target: int, **about: Any) -> int:
        accessors.append(
            {
                "bufferView": append(array.tobytes(), target=target),
                "componentType": COMPONENTS[array.dtype.name],
                "count": len(array),
                "type": SHAPES[array.shape[1] if array.ndim > 1 else 1],
                **({"normalized": True} if array.dtype == np.uint16 else {}),
                **about,
            }
        )
        return len(accessors) - 1

    indices = accessor(faces.ravel().astype(np.uint32), INDICES)
    named = {}
    for name, array in attributes.items():
        bounds = {}
        if name == "POSITION":
            bounds = {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        named[name] = accessor(np.ascontiguousarray(array), VERTICES, **bounds)
    surface: dict[str, Any] = {
        "metallicFactor": float(metallic),
        "roughnessFactor": float(roughness),
    }
    tree: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "modalign"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": named, "indices": indices, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": surface}],
    }
    if png is not None:
        tree["images"] = [{"bufferView": append(png), "mimeType": "image/png"}]
        tree["samplers"] = [
            {"magFilter": LINEAR, "minFilter": MIPMAPPED, "wrapS": CLAMPED, "wrapT": CLAMPED}
        ]
        tree["textures"] = [{"source": 0, "sampler": 0}]
        surface["baseColorTexture"] = {"index": 0}
    content.extend(b"\0" * (-len(content) % 4))
    tree |= {
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(content)}],
    }
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    head = b"glTF" + np.array([2, 12 + 8 + len(text) + 8 + len(content)], "<u4").tobytes()
    chunks = [
        np.array([len(chunk)], "<u4").tobytes() + kind + chunk
        for kind, chunk in ((b"JSON", text), (b"BIN\0", bytes(content)))
    ]
    return head + b"".join(chunks)
