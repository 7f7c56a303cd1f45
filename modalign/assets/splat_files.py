"""Files of Gaussian splats: the PLY that trainers and viewers share, and .splat of the web.

Both hold world coordinates turned (x, y, z) -> (x, -z, y).
Source: facts of TRELLIS, 3.1; the layout of .splat is that of the viewer antimatter15/splat.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from modalign.assets.gaussians import Gaussians

COLUMNS = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
UNUSED = ("nx", "ny", "nz")  # readers expect them; always 0
PLY_TYPES = {
    **{"float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8"},
    **{"char": "<i1", "int8": "<i1", "uchar": "<u1", "uint8": "<u1", "short": "<i2"},
    **{"int16": "<i2", "ushort": "<u2", "uint16": "<u2", "int": "<i4", "int32": "<i4"},
    **{"uint": "<u4", "uint32": "<u4"},
}
LONGEST_HEADER = 1 << 16
SPLAT = np.dtype(
    [("xyz", "<f4", 3), ("scaling", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)]
)
CERTAIN = 1e-8  # opacities this near 0 or 1 have finite logits, and come back as 0 or 1
HALF = math.sqrt(0.5)


def ply_columns(gaussians: Gaussians) -> dict[str, Tensor]:
    """The columns (K,) that tell splats apart, float32: logits, logarithms, turned rotations."""
    xyz, rotation = _turned(gaussians)
    opacity = gaussians.opacity[:, 0].detach().double().clamp(CERTAIN, 1 - CERTAIN)
    scaling = gaussians.scaling.detach().double().log()
    columns = dict(zip("xyz", xyz.unbind(1), strict=True))
    columns |= {f"f_dc_{k}": gaussians.features_dc.detach()[:, 0, k] for k in range(3)}
    columns["opacity"] = torch.logit(opacity)
    columns |= {f"scale_{k}": scaling[:, k] for k in range(3)}
    columns |= {f"rot_{k}": rotation[:, k] for k in range(4)}
    return {name: column.float() for name, column in columns.items()}


def write_ply(columns: dict[str, Tensor]) -> bytes:
    """A binary little-endian PLY of float32 columns."""
    count = len(columns["x"])
    table = np.zeros((count, len(COLUMNS)), dtype="<f4")
    for k, name in enumerate(COLUMNS):
        if name not in UNUSED:
            table[:, k] = columns[name].cpu().numpy()
    properties = "".join(f"property float {name}\n" for name in COLUMNS)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {count}\n{properties}"
    return (header + "end_header\n").encode() + table.tobytes()


def write_splat(gaussians: Gaussians) -> bytes:
    """32 bytes per splat: position, scale, RGBA and rotation (w, x, y, z)."""
    xyz, rotation = _turned(gaussians)
    rgba = torch.cat([gaussians.color, gaussians.opacity], dim=1).detach().clamp(0, 1)
    table = np.zeros(len(gaussians), dtype=SPLAT)
    table["xyz"] = xyz.float().cpu().numpy()
    table["scaling"] = gaussians.scaling.detach().float().cpu().numpy()
    table["rgba"] = (rgba * 255).round().byte().cpu().numpy()
    table["rotation"] = (rotation * 128 + 128).round().clamp(0, 255).byte().cpu().numpy()
    return table.tobytes()


def read_ply(path: Path) -> dict[str, Tensor]:
    """The tensors of `Gaussians`, float32, from a binary PLY that has at least our columns.

    Raises:
        ValueError: it is none, or is cut short.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    head, found, body = content[:LONGEST_HEADER].partition(b"end_header\n")
    lines = head.decode("ascii", errors="replace").split("\n")
    if lines[0].strip() != "ply" or not found:
        raise ValueError(f"{path.name} is no PLY file")
    if "format binary_little_endian 1.0" not in (line.strip() for line in lines):
        raise ValueError(f"{path.name} is not a binary little-endian PLY; save it as one")
    count, types = _header(path.name, lines)
    missing = [name for name in COLUMNS if name not in types and name not in UNUSED]
    if missing:
        raise ValueError(
            f"{path.name} holds no Gaussian splats: it lacks the columns {', '.join(missing)}"
        )
    layout = np.dtype(list(types.items()))
    start = len(head) + len(found)
    if len(content) - start < count * layout.itemsize:
        raise ValueError(
            f"{path.name} is cut short: {count} splats need {count * layout.itemsize} bytes, "
            f"it has {len(content) - start}"
        )
    table = np.frombuffer(content, layout, count, start)

    def columns(*names: str) -> Tensor:
        return torch.from_numpy(np.stack([table[name] for name in names], 1).astype(np.float64))

    x, y, z = columns("x", "y", "z").unbind(1)
    turned = columns("rot_0", "rot_1", "rot_2", "rot_3")
    length = turned.norm(dim=1, keepdim=True)
    w, i, j, k = (turned / length.clamp(min=1e-30)).unbind(1)
    back = [HALF * (w + i), HALF * (i - w), HALF * (j + k), HALF * (k - j)]
    tensors = {
        "xyz": torch.stack([x, z, -y], dim=1),
        "scaling": columns("scale_0", "scale_1", "scale_2").exp(),
        "rotation": torch.stack(back, dim=1),
        "opacity": columns("opacity").sigmoid(),
        "features_dc": columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None],
    }
    return {name: tensor.float() for name, tensor in tensors.items()}


def _header(name: str, lines: list[str]) -> tuple[int, dict[str, str]]:
    """How many vertices, and the type of each of their columns."""
    count, types = 0, {}
    elements = 0
    for words in (line.split() for line in lines):
        if words[:1] == ["element"]:
            elements += 1
            if elements > 1:
                break
            if words[1:2] != ["vertex"] or not words[2:] or not words[2].isdigit():
                raise ValueError(f"{name} holds no Gaussian splats: its first element is no vertex")
            count = int(words[2])
        elif words[:1] == ["property"]:
            if len(words) != 3 or words[1] not in PLY_TYPES:
                raise ValueError(f"{name} has an unknown column: {' '.join(words)!r}")
            types[words[2]] = PLY_TYPES[words[1]]
    return count, types


def _turned(gaussians: Gaussians) -> tuple[Any, Any]:
    """Centres (K, 3) and rotations (K, 4) after a quarter turn about x; float64."""
    x, y, z = gaussians.xyz.detach().double().unbind(1)
    w, i, j, k = gaussians.rotation.detach().double().unbind(1)
    rotation = [HALF * (w - i), HALF * (i + w), HALF * (j - k), HALF * (k + j)]
    return torch.stack([x, -z, y], dim=1), torch.stack(rotation, dim=1)
