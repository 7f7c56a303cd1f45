"""Pictures of an object, and what of a mesh is in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modalign.rendering.cameras import Camera
from modalign.rendering.rasteriser import Intersect

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modalign.assets import Mesh

OPAQUE = 0.5  # pixels with less alpha show more background than object
EDGE = 1e-3  # what a pixel beside a jump in depth counts: used only where nothing else is seen


@dataclass(frozen=True, eq=False)
class View:
    """A square picture of an object before black, and where it was taken from.

    Attributes:
        camera: of the picture.
        color: (S, S, 3) float32 in 0..1, as displayed (sRGB), composed over black.
        alpha: (S, S) float32 in 0..1.

    Raises:
        ValueError: the arrays have other shapes, or hold numbers that are not finite.
    """

    camera: Camera
    color: NDArray[np.float32]
    alpha: NDArray[np.float32]

    def __post_init__(self) -> None:
        color = np.ascontiguousarray(self.color, dtype=np.float32)
        alpha = np.ascontiguousarray(self.alpha, dtype=np.float32)
        side = len(alpha)
        if not side or alpha.shape != (side, side) or color.shape != (side, side, 3):
            raise ValueError(
                "a view needs color (S, S, 3) and alpha (S, S), a square picture; "
                f"got {color.shape} and {alpha.shape}"
            )
        if not (np.isfinite(color).all() and np.isfinite(alpha).all()):
            raise ValueError("a view holds numbers that are not finite")
        object.__setattr__(self, "color", color)
        object.__setattr__(self, "alpha", alpha)

    @property
    def size(self) -> int:
        """Pixels along a side."""
        return len(self.alpha)


@dataclass(frozen=True, eq=False)
class Sight:
    """What a view shows of a mesh, for each of its S^2 pixels.

    Attributes:
        color: (S^2, 3) float32 of the object alone, alpha divided out.
        trust: (S^2,) float32, 0 where the picture or the mesh is not, small at silhouettes.
        depth: (S^2,) float32 along the camera's axis, infinite beside the mesh.
        triangle: (S^2,) int64, the face that is seen, -1 beside the mesh.
        weights: (S^2, 3), shares of its corners.
    """

    color: NDArray[np.float32]
    trust: NDArray[np.float32]
    depth: NDArray[np.float32]
    triangle: NDArray[np.int64]
    weights: NDArray[np.float64]


def sight(view: View, mesh: Mesh, intersect: Intersect) -> Sight:
    """Joins the picture of a view with the mesh that `intersect` finds triangles of."""
    side = view.size
    triangle, weights = intersect(view.camera, side)
    hit = triangle >= 0
    along = mesh.vertices @ view.camera.extrinsics[2, :3] + view.camera.extrinsics[2, 3]
    depth = np.full(side * side, np.inf, dtype=np.float32)
    depth[hit] = (along[mesh.faces[triangle[hit]]] * weights[hit]).sum(axis=1)
    # A jump: deeper than a surface seen at a slope of 10 falls within one pixel.
    step = 10 / (view.camera.intrinsics[0, 0] * side)
    padded = np.pad(depth.reshape(side, side), 1, constant_values=np.inf)
    inner = hit.reshape(side, side).copy()
    for row, column in ((0, 1), (2, 1), (1, 0), (1, 2)):
        beside = padded[row : row + side, column : column + side]
        with np.errstate(invalid="ignore"):
            inner &= np.abs(beside - padded[1:-1, 1:-1]) < step * padded[1:-1, 1:-1]
    alpha = view.alpha.ravel()
    trust = np.where(hit & (alpha >= OPAQUE), np.where(inner.ravel(), 1.0, EDGE), 0.0)
    color = view.color.reshape(-1, 3) / np.maximum(alpha, OPAQUE)[:, None]
    return Sight(color.clip(0, 1), trust.astype(np.float32), depth, triangle, weights)
