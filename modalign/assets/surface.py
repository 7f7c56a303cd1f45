"""What meshes of every kind have in common: how they are looked at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modalign.assets.shown import Shown
from modalign.assets.viewing import Background, as_pixels, backdrop, cameras_for
from modalign.rendering.cameras import Camera
from modalign.rendering.layers import Layers, mesh_layers
from modalign.rendering.rasteriser import intersector

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

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


class Surface(Shown):
    """Pictures of triangles that know their own colours."""

    vertices: Floats
    faces: NDArray[np.int64]

    @property
    @abstractmethod
    def vertex_normals(self) -> Floats:
        """Unit normals (V, 3)."""

    @abstractmethod
    def _paint(self, corners: Any, weights: Any) -> Any:
        """Colours (K, 3) in 0..1 of points, see `rendering.layers.Paint`."""

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

    def cutouts(
        self, cameras: Sequence[Camera], size: int, *, supersampling: int = SUPERSAMPLING
    ) -> Iterator[NDArray[np.uint8]]:
        """Softly lit pictures (size, size, 4) of one camera after the other, RGB and alpha.

        Alpha is the share of a pixel that the object covers; RGB is its colour there, not
        multiplied by alpha, and 0 where it is not.

        Args:
            cameras: where from.
            size: pixels on a side.
            supersampling: rays per pixel, squared; with 1 alpha is 0 or 255.
        """
        for layers in self._layers(cameras, size * supersampling):
            fine = layers.reduced(supersampling)
            alpha = fine.mask[..., None]
            color = np.divide(fine.color, alpha, out=np.zeros_like(fine.color), where=alpha > 0)
            yield np.rint(np.concatenate([color, alpha], axis=2).clip(0, 1) * 255).astype(np.uint8)

    def _layers(self, cameras: Sequence[Camera], size: int) -> Iterator[Layers]:
        if len(self.faces) == 0:
            flat, full = np.zeros((size, size)), np.zeros((size, size, 3))
            yield from (Layers(full, full, full, flat, flat) for _ in cameras)
            return
        intersect = intersector(self.vertices, self.faces)
        arrays = (self.vertices, self.faces, self._paint, self.vertex_normals)
        for camera in cameras:
            yield mesh_layers(*arrays, intersect, camera, size)
