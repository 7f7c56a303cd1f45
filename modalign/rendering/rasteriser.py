"""Which triangle of a mesh each pixel of a camera sees, and where in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from modalign.rendering.cameras import Camera

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vertices = NDArray[np.float32]
    Faces = NDArray[np.int64]

Intersect = Callable[[Camera, int], tuple[Any, Any]]
"""intersect(camera, size): the triangle of each pixel (size^2,), -1 where none is, and the shares
of its corners there (size^2, 3)."""


def intersector(vertices: Vertices, faces: Faces) -> Intersect:
    """What finds the triangles of a mesh that a camera sees.

    Embree traces rays where it is installed; a z-buffer finds the same without, if the whole mesh
    lies before the camera.
    """
    return _embree(vertices, faces) or _depth_buffer(vertices, faces)


def _embree(vertices: Vertices, faces: Faces) -> Intersect | None:
    """An intersector by ray tracing, None where Embree is not installed."""
    try:
        from trimesh import Trimesh
        from trimesh.ray.ray_pyembree import RayMeshIntersector
    except ImportError:
        return None
    scene = RayMeshIntersector(Trimesh(vertices, faces, process=False))
    corners = vertices[faces].astype(np.float64)

    def intersect(camera: Camera, size: int) -> tuple[Any, Any]:
        origin, directions = camera.position, camera.rays(size)
        triangle = scene.intersects_first(np.broadcast_to(origin, directions.shape), directions)
        weights = np.zeros((len(triangle), 3))
        hit = triangle >= 0
        a, b, c = np.moveaxis(corners[triangle[hit]] - origin, 1, 0)
        ray = directions[hit]
        # Volumes of the tetrahedra between the ray and each edge.
        weights[hit] = np.stack(
            [
                (np.cross(second, third) * ray).sum(axis=1)
                for second, third in ((b, c), (c, a), (a, b))
            ],
            axis=1,
        )
        weights[hit] /= weights[hit].sum(axis=1, keepdims=True)
        return triangle, weights

    return intersect


def _depth_buffer(vertices: Vertices, faces: Faces, budget: int = 1 << 22) -> Intersect:
    """An intersector by rasterisation; triangles of similar extent are filled together."""

    def intersect(camera: Camera, size: int) -> tuple[Any, Any]:
        extrinsics, intrinsics = camera.extrinsics, camera.intrinsics
        seen = vertices @ extrinsics[:3, :3].T + extrinsics[:3, 3]
        projected = seen @ intrinsics.T
        pixel = projected[:, :2] / projected[:, 2:] * size - 0.5  # pixel centres at integers
        corner, inverse_depth = pixel[faces], 1 / seen[faces, 2]  # (F, 3, 2), (F, 3)
        low = np.ceil(corner.min(axis=1)).astype(np.int64).clip(0, size)
        high = np.floor(corner.max(axis=1)).astype(np.int64).clip(-1, size - 1)
        extent = (high - low + 1).max(axis=1)
        visible = ((high - low) >= 0).all(axis=1)
        nearest = np.zeros(size * size)
        triangle = np.full(size * size, -1)
        weights = np.zeros((size * size, 3))
        side = 1
        while (visible & (extent > side // 2)).any():
            bucket = np.nonzero(visible & (extent > side // 2) & (extent <= side))[0]
            step = np.stack(np.meshgrid(range(side), range(side), indexing="xy"), axis=-1)
            chunk = max(1, budget // side**2)
            for start in range(0, len(bucket), chunk):
                rows = bucket[start : start + chunk]
                at = low[rows, None] + step.reshape(1, -1, 2)  # (rows, side^2, 2)
                share = _barycentric(corner[rows, None], at)
                inside = (share >= -1e-9).all(axis=-1) & (at < size).all(axis=-1)
                row, which = np.nonzero(inside)
                # Perspective: what is linear on the screen is the inverse depth.
                share = share[row, which] * inverse_depth[rows[row]]
                inverse = share.sum(axis=1)
                place = at[row, which, 1] * size + at[row, which, 0]
                order = np.lexsort((-row, inverse))  # nearest written last
                place, inverse = place[order], inverse[order]
                owner, share = rows[row][order], (share / share.sum(axis=1, keepdims=True))[order]
                last = len(place) - 1 - np.unique(place[::-1], return_index=True)[1]
                last = last[inverse[last] > nearest[place[last]]]
                nearest[place[last]] = inverse[last]
                triangle[place[last]], weights[place[last]] = owner[last], share[last]
            side *= 2
        return triangle, weights

    return intersect


def _barycentric(corner: Any, at: Any) -> NDArray[np.float64]:
    """Shares (..., 3) of the corners (..., 3, 2) at points (..., 2); outside, one is negative."""
    a, b, c = np.moveaxis(corner, -2, 0)

    def area(p: Any, q: Any, r: Any) -> Any:
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (
            r[..., 0] - p[..., 0]
        )

    total = area(a, b, c)
    total = np.where(np.abs(total) < 1e-12, np.nan, total)  # seen edge-on: nothing is inside
    shares: NDArray[np.float64] = np.stack([area(at, b, c), area(at, c, a), area(at, a, b)], -1)
    return shares / total[..., None]
