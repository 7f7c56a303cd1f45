"""The primitives of the toybox in their own frame: distances, line crossings, normals, hulls.

Coordinates come first here, ``(3, N)``, which keeps every component contiguous.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Below this a direction counts as parallel to a face; float32 still divides safely by it.
PARALLEL = np.float32(1e-9)


class Shape(Protocol):
    """A closed solid around its own origin."""

    def sdf(self, points: Array) -> Array:
        """Signed distance (N,) of points (3, N), negative inside."""

    def entries(self, origins: Array, directions: Array) -> Array:
        """Parameters (E, N) at which the lines (3, N) pass from air into the solid, else inf."""

    def normals(self, points: Array) -> Array:
        """Outward unit normals (3, N) at surface points (3, N)."""

    def pieces(self) -> tuple[Array, Array]:
        """Centres (M, 3) and radii (M, 3) of ellipsoids, maybe flat, whose convex hull this is."""

    def scaled(self, factor: float) -> "Shape":
        """The same solid, larger by the factor."""

    @property
    def thickness(self) -> float:
        """The smallest full width of the solid."""


def _array(values: object) -> Array:
    return np.asarray(values, dtype=np.float32)


def _nonzero(values: Array) -> Array:
    return np.where(np.abs(values) < PARALLEL, PARALLEL, values)


def _only(valid: NDArray[np.bool_], values: Array) -> Array:
    return np.where(valid, values, np.float32(np.inf))


@dataclass(frozen=True)
class Box:
    """A cuboid with the given half sizes."""

    half: tuple[float, float, float]

    def sdf(self, points: Array) -> Array:
        """Signed distance (N,), exact."""
        beyond = np.abs(points) - _array(self.half)[:, None]
        outside: Array = np.sqrt(np.square(np.maximum(beyond, 0)).sum(axis=0))
        value: Array = outside + np.minimum(beyond.max(axis=0), 0)
        return value

    def entries(self, origins: Array, directions: Array) -> Array:
        """Entering parameters (1, N)."""
        inverse = 1 / _nonzero(directions)
        middle = -origins * inverse
        reach = np.abs(inverse) * _array(self.half)[:, None]
        near, far = (middle - reach).max(axis=0), (middle + reach).min(axis=0)
        return _only(near <= far, near)[None]

    def normals(self, points: Array) -> Array:
        """Normal (3, N) of the nearest face."""
        beyond = np.abs(points) - _array(self.half)[:, None]
        axis = beyond.argmax(axis=0)[None]
        result = np.zeros_like(points)
        signs = np.sign(np.take_along_axis(points, axis, axis=0))
        np.put_along_axis(result, axis, signs, axis=0)
        return result

    def pieces(self) -> tuple[Array, Array]:
        """The eight corners."""
        signs = _array(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij")).reshape(3, 8).T
        return signs * _array(self.half), np.zeros((8, 3), np.float32)

    def scaled(self, factor: float) -> "Box":
        """The same box, larger by the factor."""
        x, y, z = self.half
        return Box((x * factor, y * factor, z * factor))

    @property
    def thickness(self) -> float:
        """The shortest edge."""
        return 2 * min(self.half)


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with the given radii."""

    radii: tuple[float, float, float]

    def sdf(self, points: Array) -> Array:
        """Signed distance (N,): exact for a sphere, else right to first order at the surface."""
        radii = _array(self.radii)[:, None]
        scaled = np.sqrt(np.square(points / radii).sum(axis=0))
        slope = np.sqrt(np.square(points / radii**2).sum(axis=0))
        center = slope < 1e-4
        distance = scaled * (scaled - 1) / np.where(center, 1, slope)
        return np.where(center, -np.float32(min(self.radii)), distance)

    def entries(self, origins: Array, directions: Array) -> Array:
        """Entering parameters (1, N)."""
        inverse = 1 / _array(self.radii)[:, None]
        o, d = origins * inverse, directions * inverse
        a = (d * d).sum(axis=0)
        b = (o * d).sum(axis=0)
        inside = b * b - a * ((o * o).sum(axis=0) - 1)
        return _only(inside >= 0, (-b - np.sqrt(np.maximum(inside, 0))) / a)[None]

    def normals(self, points: Array) -> Array:
        """Normal (3, N), the gradient of the quadric."""
        gradient = points / np.square(_array(self.radii))[:, None]
        value: Array = gradient / np.sqrt(np.square(gradient).sum(axis=0))
        return value

    def pieces(self) -> tuple[Array, Array]:
        """The ellipsoid itself."""
        return np.zeros((1, 3), np.float32), _array(self.radii)[None]

    def scaled(self, factor: float) -> "Ellipsoid":
        """The same ellipsoid, larger by the factor."""
        x, y, z = self.radii
        return Ellipsoid((x * factor, y * factor, z * factor))

    @property
    def thickness(self) -> float:
        """The shortest diameter."""
        return 2 * min(self.radii)


@dataclass(frozen=True)
class Frustum:
    """A capped cone along z: `bottom` and `top` are radii; equal radii make a cylinder."""

    half: float
    bottom: float
    top: float

    def sdf(self, points: Array) -> Array:
        """Signed distance (N,), exact.

        Source: I. Quilez, "distance functions", capped cone.
        """
        x, y, z = points
        rho = np.sqrt(x * x + y * y)
        radius = np.where(z < 0, np.float32(self.bottom), np.float32(self.top))
        cap_x = rho - np.minimum(rho, radius)
        cap_z = np.abs(z) - self.half
        slope, height = self.top - self.bottom, 2 * self.half
        along = ((self.top - rho) * slope + (self.half - z) * height) / (slope**2 + height**2)
        along = np.clip(along, 0, 1)
        side_x = rho - self.top + slope * along
        side_z = z - self.half + height * along
        sign = np.where((side_x < 0) & (cap_z < 0), np.float32(-1), np.float32(1))
        nearest = np.minimum(cap_x**2 + cap_z**2, side_x**2 + side_z**2)
        value: Array = sign * np.sqrt(nearest)
        return value

    def entries(self, origins: Array, directions: Array) -> Array:
        """Entering parameters (1, N): the first of the side's crossings and the facing cap's."""
        (ox, oy, oz), (dx, dy, dz) = origins, directions
        slope = (self.top - self.bottom) / (2 * self.half)
        width = (self.top + self.bottom) / 2 + slope * oz
        growth = slope * dz
        a = _nonzero(dx * dx + dy * dy - growth * growth)
        b = ox * dx + oy * dy - width * growth
        inside = b * b - a * (ox * ox + oy * oy - width * width)
        root = np.sqrt(np.maximum(inside, 0))
        crossed = inside >= 0
        first = (-b - root) / a
        result = _only(crossed & (np.abs(oz + first * dz) <= self.half), first)
        if slope:
            other = (-b + root) / a
            valid = crossed & (np.abs(oz + other * dz) <= self.half)
            result = np.minimum(result, _only(valid, other))
        facing = np.where(dz > 0, np.float32(-self.half), np.float32(self.half))
        radius = np.where(dz > 0, np.float32(self.bottom), np.float32(self.top))
        cap = (facing - oz) / _nonzero(dz)
        x, y = ox + cap * dx, oy + cap * dy
        return np.minimum(result, _only(x * x + y * y <= radius * radius, cap))[None]

    def normals(self, points: Array) -> Array:
        """Normal (3, N) of the nearer of side and caps."""
        x, y, z = points
        rho = np.maximum(np.sqrt(x * x + y * y), 1e-9)
        slope = (self.top - self.bottom) / (2 * self.half)
        cosine = 1 / np.sqrt(1 + slope * slope)
        side = np.abs(rho - (self.top + self.bottom) / 2 - slope * z) * cosine
        on_cap = self.half - np.abs(z) < side
        flat = np.where(on_cap, np.float32(0), np.float32(cosine) / rho)
        up = np.where(on_cap, np.sign(z), np.float32(-slope * cosine))
        return _array(np.stack([x * flat, y * flat, up]))

    def pieces(self) -> tuple[Array, Array]:
        """The two discs at the ends."""
        centers = [(0, 0, -self.half), (0, 0, self.half)]
        radii = [(self.bottom, self.bottom, 0), (self.top, self.top, 0)]
        return _array(centers), _array(radii)

    def scaled(self, factor: float) -> "Frustum":
        """The same frustum, larger by the factor."""
        return Frustum(self.half * factor, self.bottom * factor, self.top * factor)

    @property
    def thickness(self) -> float:
        """Height or width, whichever is smaller."""
        return 2 * min(self.half, max(self.bottom, self.top))


@dataclass(frozen=True)
class Capsule:
    """All points within `radius` of a segment along z of half length `half`."""

    half: float
    radius: float

    def sdf(self, points: Array) -> Array:
        """Signed distance (N,), exact."""
        x, y, z = points
        z = z - np.clip(z, -self.half, self.half)
        distance: Array = np.sqrt(x * x + y * y + z * z) - np.float32(self.radius)
        return distance

    def entries(self, origins: Array, directions: Array) -> Array:
        """Entering parameters (1, N): on the side, or on the ball beyond whose end it passes."""
        (ox, oy, oz), (dx, dy, dz) = origins, directions
        a = np.maximum(dx * dx + dy * dy, PARALLEL)
        b = ox * dx + oy * dy
        squared = ox * ox + oy * oy - self.radius * self.radius
        inside = b * b - a * squared
        side = (-b - np.sqrt(np.maximum(inside, 0))) / a
        height = oz + side * dz
        result = _only((inside >= 0) & (np.abs(height) <= self.half), side)
        end = oz - np.where(height > 0, np.float32(self.half), np.float32(-self.half))
        a = a + dz * dz
        b = b + end * dz
        inside_ball = b * b - a * (squared + end * end)
        ball = (-b - np.sqrt(np.maximum(inside_ball, 0))) / a
        valid = (inside >= 0) & (np.abs(height) > self.half) & (inside_ball >= 0)
        return np.minimum(result, _only(valid, ball))[None]

    def normals(self, points: Array) -> Array:
        """Normal (3, N), away from the segment."""
        x, y, z = points
        away = np.stack([x, y, z - np.clip(z, -self.half, self.half)])
        return _array(away / np.maximum(np.sqrt(np.square(away).sum(axis=0)), 1e-9))

    def pieces(self) -> tuple[Array, Array]:
        """The two balls at the ends."""
        centers = [(0, 0, -self.half), (0, 0, self.half)]
        return _array(centers), np.full((2, 3), self.radius, np.float32)

    def scaled(self, factor: float) -> "Capsule":
        """The same capsule, larger by the factor."""
        return Capsule(self.half * factor, self.radius * factor)

    @property
    def thickness(self) -> float:
        """The diameter."""
        return 2 * self.radius


@dataclass(frozen=True)
class Tube:
    """A cylinder along z with a hole through it."""

    half: float
    outer: float
    inner: float

    def sdf(self, points: Array) -> Array:
        """Signed distance (N,), exact."""
        x, y, z = points
        rho = np.sqrt(x * x + y * y)
        across = np.abs(rho - (self.outer + self.inner) / 2) - (self.outer - self.inner) / 2
        along = np.abs(z) - self.half
        outside = np.sqrt(np.maximum(across, 0) ** 2 + np.maximum(along, 0) ** 2)
        value: Array = outside + np.minimum(np.maximum(across, along), 0)
        return value

    def entries(self, origins: Array, directions: Array) -> Array:
        """Entering parameters (3, N): outer wall, facing rim, inner wall seen through the hole."""
        (ox, oy, oz), (dx, dy, dz) = origins, directions
        a = np.maximum(dx * dx + dy * dy, PARALLEL)
        b = ox * dx + oy * dy
        squared = ox * ox + oy * oy
        inside = b * b - a * (squared - self.outer * self.outer)
        wall = (-b - np.sqrt(np.maximum(inside, 0))) / a
        valid = (inside >= 0) & (np.abs(oz + wall * dz) <= self.half)
        facing = np.where(dz > 0, np.float32(-self.half), np.float32(self.half))
        rim = (facing - oz) / _nonzero(dz)
        x, y = ox + rim * dx, oy + rim * dy
        rho = x * x + y * y
        on_rim = (rho <= self.outer * self.outer) & (rho >= self.inner * self.inner)
        inside_hole = b * b - a * (squared - self.inner * self.inner)
        hole = (-b + np.sqrt(np.maximum(inside_hole, 0))) / a
        on_hole = (inside_hole >= 0) & (np.abs(oz + hole * dz) <= self.half)
        return np.stack([_only(valid, wall), _only(on_rim, rim), _only(on_hole, hole)])

    def normals(self, points: Array) -> Array:
        """Normal (3, N) of the nearest of outer wall, inner wall and rims."""
        x, y, z = points
        rho = np.maximum(np.sqrt(x * x + y * y), 1e-9)
        outer, inner = np.abs(rho - self.outer), np.abs(rho - self.inner)
        on_rim = np.abs(self.half - np.abs(z)) < np.minimum(outer, inner)
        flat = np.where(on_rim, 0, np.where(outer < inner, 1, -1)) / rho
        return _array(np.stack([x * flat, y * flat, np.where(on_rim, np.sign(z), 0)]))

    def pieces(self) -> tuple[Array, Array]:
        """The two discs at the ends."""
        return Frustum(self.half, self.outer, self.outer).pieces()

    def scaled(self, factor: float) -> "Tube":
        """The same tube, larger by the factor."""
        return Tube(self.half * factor, self.outer * factor, self.inner * factor)

    @property
    def thickness(self) -> float:
        """Wall or height, whichever is smaller."""
        return min(2 * self.half, self.outer - self.inner)


@dataclass(frozen=True)
class Prism:
    """A convex polygon in x and z, counter-clockwise seen from -y, extruded along y."""

    corners: tuple[tuple[float, float], ...]
    half: float

    def _planes(self) -> tuple[Array, Array]:
        corners = _array(self.corners)
        edges = np.roll(corners, -1, axis=0) - corners
        edges /= np.linalg.norm(edges, axis=1, keepdims=True)
        normals = np.zeros((len(corners) + 2, 3), np.float32)
        normals[:-2, 0], normals[:-2, 2] = edges[:, 1], -edges[:, 0]
        normals[-2:, 1] = -1, 1
        offsets = np.full(len(normals), self.half, np.float32)
        offsets[:-2] = (normals[:-2, ::2] * corners).sum(axis=1)
        return normals, offsets

    def sdf(self, points: Array) -> Array:
        """Signed distance (N,), exact."""
        normals, offsets = self._planes()
        flat = points[::2]
        inside = (normals[:-2, ::2] @ flat - offsets[:-2, None]).max(axis=0)
        squared = np.full(points.shape[1], np.inf, np.float32)
        corners = _array(self.corners)
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            edge = end - start
            x, z = flat[0] - start[0], flat[1] - start[1]
            along = np.clip((x * edge[0] + z * edge[1]) / (edge @ edge), 0, 1)
            squared = np.minimum(squared, (x - along * edge[0]) ** 2 + (z - along * edge[1]) ** 2)
        across = np.where(inside > 0, np.sqrt(squared), inside)
        along_y = np.abs(points[1]) - self.half
        outside = np.sqrt(np.maximum(across, 0) ** 2 + np.maximum(along_y, 0) ** 2)
        value: Array = outside + np.minimum(np.maximum(across, along_y), 0)
        return value

    def entries(self, origins: Array, directions: Array) -> Array:
        """Entering parameters (1, N), by clipping against every face."""
        normals, offsets = self._planes()
        speed = _nonzero(normals @ directions)
        crossing = (offsets[:, None] - normals @ origins) / speed
        near = np.where(speed < 0, crossing, np.float32(-np.inf)).max(axis=0)
        far = np.where(speed > 0, crossing, np.float32(np.inf)).min(axis=0)
        return _only(near <= far, near)[None]

    def normals(self, points: Array) -> Array:
        """Normal (3, N) of the nearest face."""
        normals, offsets = self._planes()
        value: Array = normals[(normals @ points - offsets[:, None]).argmax(axis=0)].T
        return value

    def pieces(self) -> tuple[Array, Array]:
        """The corners of both ends."""
        centers = [(x, y, z) for x, z in self.corners for y in (-self.half, self.half)]
        return _array(centers), np.zeros((len(centers), 3), np.float32)

    def scaled(self, factor: float) -> "Prism":
        """The same prism, larger by the factor."""
        corners = tuple((x * factor, z * factor) for x, z in self.corners)
        return Prism(corners, self.half * factor)

    @property
    def thickness(self) -> float:
        """Depth, or the polygon's smallest width."""
        normals, offsets = self._planes()
        reach = offsets[:-2, None] - normals[:-2, ::2] @ _array(self.corners).T
        return min(2 * self.half, float(reach.max(axis=1).min()))
