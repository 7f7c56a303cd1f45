"""Which points of a surface a camera sees, and from which side most of them are seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modalign.rendering.cameras import Camera

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from modalign.rendering.rasteriser import Faces, Vertices

    Floats = NDArray[np.float64]

# Source: GAP3D (arXiv:2605.28995), appendix A.1.2; it leaves the tolerance open.
POINTS = 5000
TOLERANCE = 1e-3  # in the world's unit, where an object's longest side is 1

FirstHits = Callable[[Camera, Any], Any]
"""first_hits(camera, points): how far from the camera the first triangle is in the direction of
each point (N, 3), (N,) in the world's unit; infinite where none is."""


def surface_points(
    vertices: Vertices, faces: Faces, count: int, generator: torch.Generator
) -> Floats:
    """Points (count, 3), uniform by area.

    Args:
        vertices: (V, 3).
        faces: (F, 3).
        count: how many points.
        generator: of three uniform numbers a point, on the CPU.

    Raises:
        ValueError: no triangle has an area.
    """
    import torch

    a, b, c = np.moveaxis(vertices[faces].astype(np.float64), 1, 0)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    total = np.cumsum(area)
    if not len(area) or not total[-1] > 0:
        raise ValueError("the mesh has no area")
    drawn = torch.rand(count, 3, generator=generator, dtype=torch.float64).numpy()
    # A triangle without area owns no stretch of the sum, so that none is drawn.
    face = np.searchsorted(total, drawn[:, 0] * total[-1], side="right").clip(max=len(area) - 1)
    root = np.sqrt(drawn[:, 1:2])  # uniform in the triangle, not along its height
    across = drawn[:, 2:]
    points: Floats = (1 - root) * a[face] + root * (1 - across) * b[face] + root * across * c[face]
    return points


def visible(first_hits: FirstHits, camera: Camera, points: Floats) -> NDArray[np.bool_]:
    """Whether a camera sees points (N, 3) of the surface: nothing is nearer by `TOLERANCE`."""
    distance = np.linalg.norm(points - camera.position, axis=1)
    seen: NDArray[np.bool_] = first_hits(camera, points) >= distance - TOLERANCE
    return seen


def visible_counts(
    vertices: Vertices, faces: Faces, cameras: Sequence[Camera], points: Floats
) -> list[int]:
    """How many of `points` (N, 3) on a mesh each camera sees."""
    first_hits = caster(vertices, faces)
    return [int(visible(first_hits, camera, points).sum()) for camera in cameras]


def caster(vertices: Vertices, faces: Faces) -> FirstHits:
    """What finds the first triangle between cameras and points.

    Embree traces the rays where it is installed; a search in the camera's plane finds the same
    without, if the whole mesh lies before the camera.
    """
    return _embree(vertices, faces) or _planar(vertices, faces)


def _embree(vertices: Vertices, faces: Faces) -> FirstHits | None:
    """A caster by ray tracing, None where Embree is not installed."""
    try:
        from trimesh import Trimesh
        from trimesh.ray.ray_pyembree import RayMeshIntersector
    except ImportError:
        return None
    scene = RayMeshIntersector(Trimesh(vertices, faces, process=False))
    corners = vertices[faces].astype(np.float64)

    def first_hits(camera: Camera, points: Floats) -> Floats:
        origin = camera.position
        rays = points - origin
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        triangle = scene.intersects_first(np.broadcast_to(origin, rays.shape), rays)
        found = np.full(len(points), np.inf)
        hit = triangle >= 0
        corner, ray = corners[triangle[hit]] - origin, rays[hit]
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        along = (corner * ray[:, None]).sum(axis=2)  # (hits, 3), of the corners
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (normal * corner[:, 0]).sum(axis=1) / (normal * ray).sum(axis=1)
        # Where a triangle is seen edge-on, rounding leaves the plane's distance open.
        near, far = along.min(axis=1), along.max(axis=1)
        found[hit] = np.where(np.isfinite(distance), distance, near).clip(near, far)
        return found

    return first_hits


def _planar(vertices: Vertices, faces: Faces, budget: int = 1 << 20) -> FirstHits:
    """A caster in plain numpy: each triangle looks at the points between its left and right."""

    def first_hits(camera: Camera, points: Floats) -> Floats:
        turn, shift = camera.extrinsics[:3, :3], camera.extrinsics[:3, 3]
        corner = (vertices.astype(np.float64) @ turn.T + shift)[faces]  # (F, 3, 3)
        seen = points @ turn.T + shift
        ray = seen / seen[:, 2:]  # depth 1 each
        order = np.argsort(ray[:, 0], kind="stable")
        sorted_x = ray[order, 0]
        x = corner[..., 0] / corner[..., 2]
        first = np.searchsorted(sorted_x, x.min(axis=1), side="left")
        number = np.searchsorted(sorted_x, x.max(axis=1), side="right") - first
        depth = np.full(len(points), np.inf)
        ends = np.cumsum(number)
        start = 0
        while start < len(faces):
            done = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, done + budget, side="right")))
            count = number[start:stop]
            face = np.repeat(np.arange(start, stop), count)
            # The points of each triangle, counted from its first one.
            place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            point = order[first[face] + place]
            a, b, c = np.moveaxis(corner[face], 1, 0)
            volume = np.stack(
                [
                    (np.cross(second, third) * ray[point]).sum(axis=1)
                    for second, third in ((b, c), (c, a), (a, b))
                ],
                axis=1,
            )
            inside = ((volume >= 0).all(axis=1) | (volume <= 0).all(axis=1)) & (volume != 0).any(1)
            share = volume[inside] / volume[inside].sum(axis=1, keepdims=True)
            z = (corner[face[inside], :, 2] * share).sum(axis=1)
            np.minimum.at(depth, point[inside], z)
            start = stop
        distance: Floats = depth * np.linalg.norm(ray, axis=1)
        return distance

    return first_hits
