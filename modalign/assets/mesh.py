"""Triangle meshes with colours."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modalign.assets.turntable import FRAMES, write_turntable
from modalign.assets.viewing import Background, as_pixels, backdrop, cameras_for, write_preview
from modalign.assets.writing import check_suffix, write_whole
from modalign.rendering.cameras import Camera
from modalign.rendering.layers import Layers, mesh_layers
from modalign.rendering.rasteriser import intersector

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modalign.specs import ProgressCallback

    Floats = NDArray[np.float32]

# glTF prescribes y up and OBJ readers assume it; PLY files carry world coordinates as they are.
Y_UP = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=np.float32)  # (x, y, z) -> (x, z, -y)
Y_UP_FORMATS = (".glb", ".obj")

SUPERSAMPLING = 2
FINE_SUPERSAMPLING = 4  # the reference's, for what is measured
HALF_DIAGONAL = 3**0.5 / 2  # of the unit cube

# Values in 0..1 of a mesh's layers, by what is to be seen, at a camera's distance from the origin.
MODES: Mapping[str, Callable[[Layers, float], NDArray[np.float64]]] = {
    "color": lambda layers, _: layers.color,
    "albedo": lambda layers, _: layers.albedo,
    "normal": lambda layers, _: (layers.normal + 1) / 2,
    "depth": lambda layers, distance: (
        (layers.depth - distance + HALF_DIAGONAL) / (2 * HALF_DIAGONAL)
    ).clip(0, 1)[..., None],
    "mask": lambda layers, _: layers.mask[..., None],
}


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

    def layers(self, camera: Camera, size: int, *, supersampling: int = 4) -> Layers:
        """Light, colour, normals, depth and cover as floats; see `modalign.rendering.layers`."""
        return next(self._layers([camera], size * supersampling)).reduced(supersampling)

    def render(
        self,
        views: int = 4,
        size: int = 256,
        *,
        cameras: Sequence[Camera] | None = None,
        background: Background = 1.0,
        mode: str = "color",
    ) -> NDArray[np.uint8]:
        """Pictures (V, size, size, 3): from `cameras`, or from `views` evenly spaced sides.

        Embree traces the rays where it is installed; a z-buffer gives the same picture without.

        Args:
            views: how many sides.
            size: pixels on a side.
            cameras: instead of `views`.
            background: a grey or RGB in 0..1, as displayed; "mask" has none.
            mode: "color" is softly lit; "albedo" is not; "normal" shows (n + 1) / 2 of the faces'
                normals in the world; "depth" is 0 half a diagonal of the unit cube before the
                origin and 1 as much behind it; "mask" is white on black.

        Raises:
            ValueError: the mode is unknown, or there would be no picture.
        """
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
        cameras = cameras_for(views, size, cameras)
        behind = backdrop(0.0 if mode == "mask" else background)
        times = SUPERSAMPLING if mode in ("color", "albedo") else FINE_SUPERSAMPLING
        pictures = []
        for camera, layers in zip(cameras, self._layers(cameras, size * times), strict=True):
            shown = MODES[mode](layers, float(np.linalg.norm(camera.position)))
            mask = layers.mask[..., None]
            pictures.append(shown * mask + (1 - mask) * behind)
        return as_pixels(pictures, size)

    def _layers(self, cameras: Sequence[Camera], size: int) -> Iterator[Layers]:
        if len(self.faces) == 0:
            flat, full = np.zeros((size, size)), np.zeros((size, size, 3))
            yield from (Layers(full, full, full, flat, flat) for _ in cameras)
            return
        intersect = intersector(self.vertices, self.faces)
        arrays = (self.vertices, self.faces, self.vertex_colors, self.vertex_normals)
        for camera in cameras:
            yield mesh_layers(*arrays, intersect, camera, size)

    def preview(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG of four views side by side.

        Raises:
            OSError: the file cannot be written.
        """
        write_preview(self, path)

    def turntable(
        self,
        path: str | os.PathLike[str],
        *,
        frames: int = FRAMES,
        size: int = 256,
        background: Background = 1.0,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Write a film of one turn; see `modalign.assets.turntable.write_turntable`."""
        write_turntable(
            self, path, frames=frames, size=size, background=background, progress=progress
        )


def linear_from_srgb(colors: Floats) -> Floats:
    """Linear light of displayed values, both in 0..1. Source: IEC 61966-2-1."""
    high = ((np.maximum(colors, 0) + 0.055) / 1.055) ** 2.4
    return np.where(colors <= 0.04045, colors / 12.92, high).astype(np.float32)
