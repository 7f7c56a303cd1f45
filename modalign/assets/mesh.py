"""Triangle meshes with colours."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modalign.assets.writing import check_suffix, write_whole
from modalign.rendering.cameras import Camera, around
from modalign.rendering.rasteriser import Intersect, intersector

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# glTF prescribes y up and OBJ readers assume it; PLY files carry world coordinates as they are.
Y_UP = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=np.float32)  # (x, y, z) -> (x, z, -y)
Y_UP_FORMATS = (".glb", ".obj")

SUPERSAMPLING = 2
BACKGROUND = 1.0
AMBIENT, DIFFUSE = 0.45, 0.55  # soft light from behind the camera and above


@dataclass(frozen=True, eq=False)
class Mesh:
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
        colors = linear_from_srgb(self.vertex_colors) if suffix == ".glb" else self.vertex_colors
        rounded = np.rint(colors.clip(0, 1) * 255).astype(np.uint8)
        mesh = trimesh.Trimesh(
            vertices=self.vertices @ turn.T,
            faces=self.faces,
            vertex_normals=self.vertex_normals @ turn.T,
            vertex_colors=rounded,
            process=False,
        )
        if suffix == ".glb":
            return bytes(mesh.export(file_type="glb", include_normals=True))
        if suffix == ".ply":
            return bytes(mesh.export(file_type="ply", vertex_normal=True))
        text: str = mesh.export(file_type="obj", include_normals=True, header="modalign")
        return text.encode()

    def render(self, views: int = 4, size: int = 256) -> NDArray[np.uint8]:
        """Pictures from evenly spaced sides, (views, size, size, 3), softly lit, white behind.

        Embree traces the rays where it is installed; a z-buffer gives the same picture without.
        """
        if len(self.faces) == 0:
            return np.full((views, size, size, 3), round(BACKGROUND * 255), dtype=np.uint8)
        intersect = intersector(self.vertices, self.faces)
        pictures = [self._view(camera, size * SUPERSAMPLING, intersect) for camera in around(views)]
        fine = np.stack(pictures)
        fine = fine.reshape(views, size, SUPERSAMPLING, size, SUPERSAMPLING, 3)
        mean: NDArray[np.float64] = fine.mean(axis=(2, 4)).clip(0, 1)
        return np.rint(mean * 255).astype(np.uint8)

    def _view(self, camera: Camera, size: int, intersect: Intersect) -> NDArray[np.float64]:
        triangle, weights = intersect(camera, size)
        hit = triangle >= 0
        corners = self.faces[triangle[hit]]  # (hits, 3)
        weights = weights[hit][..., None]
        color = (self.vertex_colors[corners] * weights).sum(axis=1)
        normal = (self.vertex_normals[corners] * weights).sum(axis=1)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        light = np.array([0.0, 0.0, 0.6]) - camera.extrinsics[2, :3]  # towards the camera, and up
        light /= np.linalg.norm(light)
        shade = AMBIENT + DIFFUSE * (normal @ light).clip(0, 1)
        picture = np.full((size * size, 3), BACKGROUND)
        picture[hit] = color * shade[:, None]
        return picture.reshape(size, size, 3)

    def preview(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG of four views side by side.

        Raises:
            OSError: the file cannot be written.
        """
        from PIL import Image

        strip = np.concatenate(list(self.render()), axis=1)
        buffer = io.BytesIO()
        Image.fromarray(strip).save(buffer, format="PNG")
        write_whole(Path(path), buffer.getvalue())


def linear_from_srgb(colors: Floats) -> Floats:
    """Linear light of displayed values, both in 0..1. Source: IEC 61966-2-1."""
    high = ((np.maximum(colors, 0) + 0.055) / 1.055) ** 2.4
    return np.where(colors <= 0.04045, colors / 12.92, high).astype(np.float32)
