"""Meshes from files of others, brought into the world frame."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from modalign.assets.mesh import Y_UP, Y_UP_FORMATS, Mesh, srgb_from_linear
from modalign.assets.painted import PaintedMesh
from modalign.assets.writing import FORMATS

if TYPE_CHECKING:
    from numpy.typing import NDArray

GREY = 0.7  # as displayed, of what has no colour
TEXTURE_SIDE = 2048  # larger textures are averaged: no picture shows more of them
DEGENERATE = 1e-12  # a triangle below this share of the squared diagonal is a line or a point


class Placement(NamedTuple):
    """How a file was brought into the unit cube: scale * (its point, z up) + offset."""

    scale: float
    offset: tuple[float, float, float]


def read_mesh(path: str | os.PathLike[str]) -> tuple[PaintedMesh, Placement]:
    """The mesh in a GLB, OBJ or PLY file, centred, its longest side 1, and how it was placed so.

    All parts of a scene are placed by their transforms. GLB and OBJ are taken as y up, PLY as z
    up. Colours are those of vertices or faces, the material's base colour and its texture, which
    repeats and is averaged above 2048 texels a side; what has none is grey. Transparency, emission
    and other maps are ignored, and so is the diffuse colour of an OBJ's material beside a texture.
    Normals are the file's; where a GLB has none its faces are flat, as glTF prescribes.

    Raises:
        ValueError: the file cannot be read, or holds no triangles with an area, or numbers that
            are not finite. One line, without the file's name.
    """
    import trimesh

    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS["mesh"]:
        raise ValueError(f"unknown extension {path.suffix!r}; known: {', '.join(FORMATS['mesh'])}")
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            scene = trimesh.load_scene(path, process=False)
            parts = [
                _part(scene.geometry[name], transform, suffix)
                for transform, name in map(scene.graph.get, sorted(scene.graph.nodes_geometry))
                if len(getattr(scene.geometry[name], "faces", ()))
            ]
    # Parsers of damaged files raise what they like, from KeyError to struct.error.
    except Exception as error:
        said = " ".join(str(error).split()) or "no reason given"
        raise ValueError(f"it cannot be read: {type(error).__name__}: {said}") from error
    if not parts:
        raise ValueError("it holds no triangles")
    starts = np.cumsum([0] + [len(part["vertices"]) for part in parts])
    faces = np.concatenate([part["faces"] + at for part, at in zip(parts, starts, strict=False)])
    vertices = np.concatenate([part["vertices"] for part in parts])
    vertices, faces, placement = _normalised(vertices, faces)
    for part, at in zip(parts, starts, strict=False):
        if part["normals"] is None:
            own = vertices[at : at + len(part["vertices"])]
            part["normals"] = Mesh(own, part["faces"], part["colors"]).vertex_normals
    images: list[Any] = []
    texture_of = [_index(part["image"], images) for part in parts]
    mesh = PaintedMesh(
        vertices=vertices,
        faces=faces,
        vertex_colors=np.concatenate([part["colors"] for part in parts]),
        normals=np.concatenate([part["normals"] for part in parts]),
        uv=np.concatenate([part["uv"] for part in parts]),
        textures=tuple(map(_texture, images)),
        texture_of=np.repeat(texture_of, np.diff(starts)),
    )
    return mesh, placement


def _index(image: Any, images: list[Any]) -> int:
    """Where `image` stands in the list, which it joins if it is new; -1 for None."""
    if image is None:
        return -1
    for number, known in enumerate(images):
        if known is image:
            return number
    images.append(image)
    return len(images) - 1


def _normalised(
    vertices: NDArray[np.float64], faces: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64], Placement]:
    """Vertices in the unit cube, faces that have an area, and what was done.

    Raises:
        ValueError: a number is not finite, a face names no vertex, or none has an area.
    """
    if not 0 <= faces.min() <= faces.max() < len(vertices):
        raise ValueError(
            f"faces name vertices {faces.min()}..{faces.max()}, but there are {len(vertices)}"
        )
    corners = vertices[faces]
    if not np.isfinite(corners).all():
        raise ValueError("vertices hold numbers that are not finite")
    size = np.ptp(corners.reshape(-1, 3), axis=0).max()
    if size > 0:
        a, b, c = np.moveaxis((corners - corners[0, 0]) / size, 1, 0)
        kept = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2 > DEGENERATE
        faces = faces[kept]
    if not size > 0 or not len(faces):
        raise ValueError("none of its triangles has an area")
    used = vertices[faces.ravel()]
    low, high = used.min(axis=0), used.max(axis=0)
    scale, middle = 1 / (high - low).max(), (low + high) / 2
    # What no face uses may lie anywhere; it must not leave float32.
    placed = ((vertices - middle) * scale).clip(-1, 1)
    x, y, z = (-middle * scale).tolist()
    return (
        np.nan_to_num(placed).astype(np.float32),
        faces,
        Placement(float(scale), (x, y, z)),
    )


def _part(geometry: Any, transform: Any, suffix: str) -> dict[str, Any]:
    """Arrays of one geometry, one row per vertex, placed, z up; its `image`, if it has one."""
    from trimesh.visual.texture import TextureVisuals

    turn = np.asarray(transform[:3, :3], np.float64)
    faces = np.array(geometry.faces, np.int64)
    count = len(geometry.vertices)
    found: dict[str, Any] = {
        "vertices": np.asarray(geometry.vertices, np.float64) @ turn.T + transform[:3, 3],
        "normals": _normals(geometry, turn),
        "colors": np.full((count, 3), GREY, np.float32),
        "uv": np.zeros((count, 2), np.float32),
        "image": None,
    }
    corner = np.arange(count)  # of each row of what is returned
    visual = geometry.visual
    flat = suffix == ".glb" and found["normals"] is None
    by_face = visual.kind == "face"
    if flat or by_face:
        corner, faces = faces.ravel(), np.arange(faces.size).reshape(-1, 3)
        for name in ("vertices", "normals", "colors", "uv"):
            found[name] = None if found[name] is None else found[name][corner]
    if by_face:
        found["colors"] = _displayed(visual.face_colors, suffix).repeat(3, axis=0)
    elif visual.kind == "vertex":
        found["colors"] = _displayed(visual.vertex_colors, suffix)[corner]
    elif isinstance(visual, TextureVisuals):
        found |= _material(visual, corner, suffix)
    if np.linalg.det(turn) < 0:  # mirrored: what was counter-clockwise is no more
        faces = faces[:, ::-1]
    if suffix in Y_UP_FORMATS:
        found["vertices"] = found["vertices"] @ Y_UP
        found["normals"] = None if found["normals"] is None else found["normals"] @ Y_UP
    return found | {"faces": faces}


def _normals(geometry: Any, turn: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The file's own unit normals (V, 3), turned; None where it has none, or unusable ones."""
    if "vertex_normals" not in geometry._cache or abs(np.linalg.det(turn)) < 1e-300:
        return None  # asked for, trimesh would compute them
    normals = np.asarray(geometry.vertex_normals, np.float64) @ np.linalg.inv(turn)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    usable = normals.shape == geometry.vertices.shape and (length > 0).all()
    return normals / length if usable and np.isfinite(length).all() else None


def _material(visual: Any, corner: NDArray[np.int64], suffix: str) -> dict[str, Any]:
    """Colours, uv and image of a part that has a material."""
    material = visual.material
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if visual.uv is None or len(visual.uv) == 0:
        image = None
    factor = getattr(material, "baseColorFactor", None)
    if factor is None:
        factor = getattr(material, "diffuse", None)
    if factor is None or (image is not None and suffix != ".glb"):
        factor = np.full(3, 255, np.uint8)
    light = np.broadcast_to(_unit(factor)[..., :3], (len(corner), 3))
    if "color" in visual.vertex_attributes:
        light = light * _unit(visual.vertex_attributes["color"])[corner, :3]
    found = {"colors": _displayed(light, suffix), "image": image}
    if image is not None:
        # trimesh counts v upwards.
        uv = np.asarray(visual.uv, np.float64)[corner, :2] * (1, -1) + (0, 1)
        found["uv"] = np.nan_to_num(uv, posinf=0, neginf=0).astype(np.float32)
    return found


def _unit(values: Any) -> NDArray[np.float64]:
    """Colours in 0..1; integers stand for shares of their largest."""
    values = np.asarray(values)
    most = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1
    unit: NDArray[np.float64] = np.nan_to_num(values / most).clip(0, 1)
    return unit


def _displayed(colors: Any, suffix: str) -> NDArray[np.float32]:
    """RGB (N, 3) as displayed; glTF's colours are linear light."""
    values = _unit(colors)[:, :3].astype(np.float32)
    return srgb_from_linear(values) if suffix == ".glb" else values


def _texture(image: Any) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of a texture, without its transparency."""
    from PIL import Image

    shown = image.convert("RGB")
    shown.thumbnail((TEXTURE_SIDE, TEXTURE_SIDE), Image.Resampling.BOX)
    return np.array(shown)
