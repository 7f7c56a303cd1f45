"""A second reader of binary glTF, after the specification, that checks what it reads."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

TYPES = {5126: np.float32, 5125: np.uint32, 5123: np.uint16}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


def opened(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tree of a GLB with one primitive, and its arrays by name, "indices" and "image" too."""
    magic, version, total = content[:4], *np.frombuffer(content, "<u4", 2, 4)
    assert (magic, version, total) == (b"glTF", 2, len(content))
    length = int(np.frombuffer(content, "<u4", 1, 12)[0])
    assert content[16:20] == b"JSON"
    tree = json.loads(content[20 : 20 + length])
    start = 20 + length
    assert start % 4 == 0
    assert content[start + 4 : start + 8] == b"BIN\0"
    binary = content[start + 8 :]
    assert (
        len(binary)
        == np.frombuffer(content, "<u4", 1, start)[0]
        == tree["buffers"][0]["byteLength"]
    )

    def chunk(view: int) -> bytes:
        told = tree["bufferViews"][view]
        assert told["byteOffset"] % 4 == 0
        assert told["byteOffset"] + told["byteLength"] <= len(binary)
        return binary[told["byteOffset"] : told["byteOffset"] + told["byteLength"]]

    (primitive,) = tree["meshes"][0]["primitives"]
    arrays: dict[str, Any] = {}
    for name, index in (primitive["attributes"] | {"indices": primitive["indices"]}).items():
        told = tree["accessors"][index]
        array = np.frombuffer(chunk(told["bufferView"]), TYPES[told["componentType"]])
        arrays[name] = array.reshape(-1, WIDTHS[told["type"]])
        assert len(arrays[name]) == told["count"]
        if "min" in told:
            assert arrays[name].min(axis=0).tolist() == told["min"]
            assert arrays[name].max(axis=0).tolist() == told["max"]
    count = {len(arrays[name]) for name in primitive["attributes"]}
    assert len(count) == 1
    assert arrays["indices"].max() < count.pop()
    assert len(arrays["indices"]) % 3 == 0
    assert "min" in tree["accessors"][primitive["attributes"]["POSITION"]]  # glTF asks for it
    assert 0 <= primitive["material"] < len(tree["materials"])
    for image in tree.get("images", []):
        assert image["mimeType"] == "image/png"
        arrays["image"] = chunk(image["bufferView"])
    return tree, arrays
