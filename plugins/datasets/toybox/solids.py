"""Shapes placed in the world, and short constructors for them.

The world is right-handed with z up; the front of things looks along -y.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .shapes import Array, Box, Capsule, Ellipsoid, Frustum, Prism, Shape, Tube

Point = tuple[float, float, float]

IDENTITY: Array = np.eye(3, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Solid:
    """A shape with a pose: `center` (3,) and `rotation` (3, 3), local to world."""

    shape: Shape
    center: Array
    rotation: Array

    def sdf(self, points: Array) -> Array:
        """Signed distance (N,) of world points (N, 3), negative inside."""
        return self.shape.sdf(self.rotation.T @ (points - self.center).T)

    def entries(self, origins: Array, directions: Array) -> Array:
        """Ray parameters (E, N) where rays (N, 3) pass from air into the solid, else inf.

        Directions need not be unit. Rays start outside the solid. `origins` may be (1, 3).
        """
        # Starting at the closest approach keeps float32 exact for small solids seen from afar.
        to_center = self.center - origins
        closest = (to_center * directions).sum(axis=1) / np.square(directions).sum(axis=1)
        local_origins = self.rotation.T @ (closest[:, None] * directions - to_center).T
        crossings = self.shape.entries(local_origins, self.rotation.T @ directions.T) + closest
        return np.where(crossings > 0, crossings, np.float32(np.inf))

    def normals(self, points: Array) -> Array:
        """Outward unit normals (N, 3) at surface points (N, 3)."""
        local = self.shape.normals(self.rotation.T @ (points - self.center).T)
        return (self.rotation @ local).T

    def intersect(self, origins: Array, directions: Array) -> tuple[Array, Array]:
        """First ray parameter (N,), inf where missed, and normal (N, 3), zero where missed."""
        first = self.entries(origins, directions).min(axis=0)
        hit = np.isfinite(first)
        normals = np.zeros_like(directions)
        starts = np.broadcast_to(origins, directions.shape)
        points = starts[hit] + first[hit, None] * directions[hit]
        normals[hit] = self.normals(points)
        return first, normals

    def moved(self, scale: float, offset: Array, rotation: Array = IDENTITY) -> "Solid":
        """This solid scaled and rotated about the world's origin, then shifted by `offset` (3,)."""
        center = rotation @ (self.center * np.float32(scale)) + offset
        return Solid(self.shape.scaled(scale), center, rotation @ self.rotation)


@dataclass(frozen=True, eq=False)
class Hull:
    """Ellipsoids, maybe flat or points, whose convex hulls are solids.

    `centers` (M, 3) and `axes` (M, 3, 3, radii as columns); solid k owns rows from `starts[k]`.
    """

    centers: Array
    axes: Array
    starts: np.ndarray[tuple[int], np.dtype[np.intp]]

    def moved(self, scale: float, offset: Array) -> "Hull":
        """These hulls scaled about the origin, then shifted by `offset` (3,)."""
        factor = np.float32(scale)
        return Hull(self.centers * factor + offset, self.axes * factor, self.starts)

    def bounds(self) -> tuple[Array, Array]:
        """Lowest and highest corner (K, 3) of each solid's exact bounding box."""
        reach = np.sqrt(np.square(self.axes).sum(axis=2))
        low = np.minimum.reduceat(self.centers - reach, self.starts)
        return low, np.maximum.reduceat(self.centers + reach, self.starts)

    def projected(self, eye: Array, view: Array) -> tuple[Array, Array]:
        """Lowest and highest x/z and y/z (K, 2) of each solid seen from `eye` (3,).

        The rows of `view` (3, 3) are right, down and forward. Exact, by the dual conic of each
        ellipsoid's outline; every solid must lie in front of the eye.
        """
        centers = (self.centers - eye) @ view.T
        axes = view @ self.axes
        x_y = centers[:, :2]
        depth = centers[:, 2:]
        forward = axes[:, 2:, :]
        a = np.square(axes[:, :2]).sum(axis=2) - x_y**2
        b = (axes[:, :2] * forward).sum(axis=2) - x_y * depth
        d = np.square(forward).sum(axis=2) - depth**2
        root = np.sqrt(np.maximum(b * b - a * d, 0))
        low = np.minimum.reduceat((b + root) / d, self.starts)
        return low, np.maximum.reduceat((b - root) / d, self.starts)


def hull(solids: Sequence[Solid]) -> Hull:
    """The hulls of some solids, stacked."""
    centers, axes, starts, count = [], [], [], 0
    for solid in solids:
        local, radii = solid.shape.pieces()
        centers.append(local @ solid.rotation.T + solid.center)
        axes.append(solid.rotation * radii[:, None, :])
        starts.append(count)
        count += len(local)
    return Hull(np.concatenate(centers), np.concatenate(axes), np.array(starts, np.intp))


def turned(axis: str, degrees: float) -> Array:
    """Rotation (3, 3) about the axis "x", "y" or "z", counter-clockwise seen from its tip."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    rotation = np.eye(3, dtype=np.float32)
    rotation[i, i] = rotation[j, j] = cosine
    rotation[i, j], rotation[j, i] = -sine, sine
    return rotation


# Turns a solid's z axis to the front (-y), as for a wheel or a clock face seen from the front.
TO_FRONT = turned("x", 90)
TO_SIDE = turned("y", 90)


def _place(shape: Shape, center: Point, turn: Array) -> Solid:
    return Solid(shape, np.array(center, np.float32), turn)


def box(center: Point, size: Point, turn: Array = IDENTITY) -> Solid:
    """A cuboid with full edge lengths `size`."""
    return _place(Box((size[0] / 2, size[1] / 2, size[2] / 2)), center, turn)


def ball(center: Point, radii: float | Point, turn: Array = IDENTITY) -> Solid:
    """A sphere or an ellipsoid."""
    if not isinstance(radii, tuple):
        radii = (radii, radii, radii)
    return _place(Ellipsoid(radii), center, turn)


def cone(center: Point, height: float, bottom: float, top: float, turn: Array = IDENTITY) -> Solid:
    """A capped cone along z with the radii `bottom` and `top`."""
    return _place(Frustum(height / 2, bottom, top), center, turn)


def cylinder(center: Point, height: float, radius: float, turn: Array = IDENTITY) -> Solid:
    """A cylinder along z."""
    return cone(center, height, radius, radius, turn)


def tube(center: Point, height: float, outer: float, inner: float, turn: Array = IDENTITY) -> Solid:
    """A hollow, open cylinder along z."""
    return _place(Tube(height / 2, outer, inner), center, turn)


def slab(
    corners: Sequence[tuple[float, float]],
    depth: float,
    center: Point = (0, 0, 0),
    turn: Array = IDENTITY,
) -> Solid:
    """A convex polygon in (x, z), counter-clockwise seen from the front, `depth` thick along y."""
    return _place(Prism(tuple(corners), depth / 2), center, turn)


def rod(start: Point, end: Point, radius: float) -> Solid:
    """A rod with round ends between two points."""
    a, b = np.array(start, np.float64), np.array(end, np.float64)
    length = float(np.linalg.norm(b - a))
    z = (b - a) / length
    x = np.cross(np.eye(3)[np.abs(z).argmin()], z)
    x /= np.linalg.norm(x)
    turn = np.stack([x, np.cross(z, x), z], axis=1).astype(np.float32)
    return Solid(Capsule(length / 2, radius), ((a + b) / 2).astype(np.float32), turn)


def arc(
    center: Point, radius: float, thickness: float, start: float, end: float, steps: int = 6
) -> list[Solid]:
    """An arc of round rods in the x-z plane; angles in degrees from +x towards +z."""
    angles = np.radians(np.linspace(start, end, steps + 1))
    x = center[0] + radius * np.cos(angles)
    z = center[2] + radius * np.sin(angles)
    points = [(float(a), center[1], float(b)) for a, b in zip(x, z, strict=True)]
    return [rod(a, b, thickness / 2) for a, b in zip(points[:-1], points[1:], strict=True)]
