"""Triangle meshes with colours."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modalign.assets.gltf import glb
from modalign.assets.surface import Surface
from modalign.assets.writing import check_suffix, write_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# glTF prescribes y up and OBJ readers assume it; PLY files carry world coordinates as they are.
Y_UP = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=np.float32)  # (x, y, z) -> (x, z, -y)
Y_UP_FORMATS = (".glb", ".obj")


@dataclass(frozen=True, eq=False)
class Mesh(Surface):
    """A triangle mesh with colours.

    Attributes:
        vertices: (V, 3) float32, world frame.
        faces: (F, 3) int64, counter-clockwise from outside.
        vertex_colors: (V, 3) float32 in 0..1, as displayed (sRGB).
        normals: (V, 3) float32 unit vectors; from the geometry if not given.

    Raises:
        ValueError: arrays have wrong shapes, hold numbers that are not finite, or faces name
            vertices that do not exist.
    """

    vertices: Floats
    faces: NDArray[np.int64]
    vertex_colors: Floats
    normals: Floats | None = None

    def __post_init__(self) -> None:
        arrays = {"vertices": self.vertices, "vertex_colors": self.vertex_colors}
        if self.normals is not None:
            arrays["normals"] = self.normals
        for name, array in arrays.items():
            array = np.ascontiguousarray(array, dtype=np.float32)
            if array.ndim != 2 or array.shape != (len(self.vertices), 3):
                raise ValueError(
                    f"{name} must be ({len(self.vertices)}, 3), one row per vertex, "
                    f"got {array.shape}"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"{name} hold numbers that are not finite")
            object.__setattr__(self, name, array)
        faces = np.ascontiguousarray(self.faces, dtype=np.int64)
        if faces.ndim != 2 or faces.shape[1] != 3:
            raise ValueError(f"faces must be (F, 3), got {faces.shape}")
        if faces.size and not 0 <= faces.min() <= faces.max() < len(self.vertices):
            raise ValueError(
                f"faces name vertices {faces.min()}..{faces.max()}, "
                f"but there are {len(self.vertices)}"
            )
        object.__setattr__(self, "faces", faces)

    @property
    def vertex_normals(self) -> Floats:
        """Unit normals (V, 3): those given, or area-weighted means of the adjacent faces'."""
        if self.normals is not None:
            return self.normals
        a, b, c = (self.vertices[self.faces[:, k]].astype(np.float64) for k in range(3))
        face_normals = np.cross(b - a, c - a)  # as long as twice the area
        normals = np.stack(
            [
                np.bincount(
                    self.faces.ravel(),
                    weights=np.repeat(face_normals[:, axis], 3),
                    minlength=len(self.vertices),
                )
                for axis in range(3)
            ],
            axis=1,
        )
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        up = np.array([0.0, 0.0, 1.0])  # for a vertex that no face uses
        unit: Floats = np.where(length > 0, normals / np.maximum(length, 1e-30), up)
        return unit.astype(np.float32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write GLB, PLY or OBJ, whole or not at all; equal meshes give equal files.

        GLB and OBJ are y up, PLY keeps the world's z up. glTF defines vertex colours as linear
        light, so they are converted from sRGB there; PLY and OBJ carry them as displayed.

        Raises:
            ValueError: the extension is unknown, or there is no face to write.
            OSError: the file cannot be written.
        """
        path = Path(path)
        check_suffix(path, "mesh")
        if len(self.faces) == 0:
            raise ValueError(f"cannot save {path.name!r}: the mesh has no faces")
        write_whole(path, self._encode(path.suffix.lower()))

    def _encode(self, suffix: str) -> bytes:
        import trimesh

        turn = Y_UP if suffix in Y_UP_FORMATS else np.eye(3, dtype=np.float32)
        if suffix == ".glb":
            light = linear_from_srgb(self.vertex_colors).clip(0, 1)
            opaque = np.concatenate([light, np.ones((len(light), 1), np.float32)], axis=1)
            attributes = {
                "POSITION": self.vertices @ turn.T,
                "NORMAL": self.vertex_normals @ turn.T,
                "COLOR_0": np.rint(opaque * 65535).astype(np.uint16),
            }
            return glb(self.faces, attributes)
        rounded = np.rint(self.vertex_colors.clip(0, 1) * 255).astype(np.uint8)
        mesh = trimesh.Trimesh(
            vertices=self.vertices @ turn.T,
            faces=self.faces,
            vertex_normals=self.vertex_normals @ turn.T,
            vertex_colors=rounded,
            process=False,
        )
        if suffix == ".ply":
            return bytes(mesh.export(file_type="ply", vertex_normal=True))
        text: str = mesh.export(file_type="obj", include_normals=True, header="modalign")
        return text.encode()

    def _paint(self, corners: Any, weights: Any) -> Any:
        return (self.vertex_colors[corners] * weights).sum(axis=1)


def linear_from_srgb(colors: Floats) -> Floats:
    """Linear light of displayed values, both in 0..1. Source: IEC 61966-2-1."""
    high = ((np.maximum(colors, 0) + 0.055) / 1.055) ** 2.4
    return np.where(colors <= 0.04045, colors / 12.92, high).astype(np.float32)


def srgb_from_linear(light: Floats) -> Floats:
    """Displayed values of linear light, both in 0..1. Source: IEC 61966-2-1."""
    high = 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055
    return np.where(light <= 0.0031308, light * 12.92, high).astype(np.float32)
