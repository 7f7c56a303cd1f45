"""Coloured parts put together, and the ground truth of their geometry."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .palette import rgb
from .shapes import Array
from .solids import Hull, Solid

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Part:
    """A named part of one colour, the union of its solids."""

    name: str
    color: str
    solids: tuple[Solid, ...]


@dataclass(frozen=True, eq=False)
class Assembly:
    """Parts and their hulls, inside [-0.5, 0.5]^3. Points are rows (N, 3) in that frame."""

    parts: tuple[Part, ...]
    hull: Hull

    @cached_property
    def solids(self) -> tuple[Solid, ...]:
        """All solids, part by part."""
        return tuple(solid for part in self.parts for solid in part.solids)

    @cached_property
    def solid_parts(self) -> NDArray[np.int16]:
        """The part (K,) that each solid belongs to."""
        counts = [len(part.solids) for part in self.parts]
        return np.repeat(np.arange(len(counts), dtype=np.int16), counts)

    @cached_property
    def palette(self) -> Array:
        """RGB (P, 3) in 0..1 of every part."""
        return np.stack([rgb(part.color) for part in self.parts])

    def part_distances(self, points: Array) -> Array:
        """Signed distance (P, N) of points (N, 3) to every part, negative inside."""
        points = np.asarray(points, np.float32)
        distances: list[Array] = [
            np.minimum.reduce([solid.sdf(points) for solid in part.solids]) for part in self.parts
        ]
        return np.stack(distances)

    def sdf(self, points: Array) -> Array:
        """Signed distance (N,) of points (N, 3); outside exact, inside a union's usual bound.

        Ellipsoids are right to first order only.
        """
        nearest: Array = self.part_distances(points).min(axis=0)
        return nearest

    def part_ids(self, points: Array) -> NDArray[np.int16]:
        """Index (N,) of the nearest part for points (N, 3)."""
        nearest: NDArray[np.int16] = self.part_distances(points).argmin(axis=0).astype(np.int16)
        return nearest

    def colors(self, points: Array) -> Array:
        """RGB (N, 3) in 0..1 of the nearest part for points (N, 3)."""
        return self.palette[self.part_ids(points)]

    def _within(self, axis: Array, reach: float) -> Mask:
        """Points of the grid axis^3 (n, n, n) that lie inside the object or nearer than `reach`."""
        result = np.zeros((len(axis),) * 3, np.bool_)
        low, high = self.hull.bounds()
        first = np.searchsorted(axis, low - reach)
        last = np.searchsorted(axis, high + reach, side="right")
        for solid, start, stop in zip(self.solids, first, last, strict=True):
            x, y, z = (slice(a, b) for a, b in zip(start, stop, strict=True))
            mesh = np.meshgrid(axis[x], axis[y], axis[z], indexing="ij")
            points = np.stack(mesh, axis=-1).reshape(-1, 3)
            if len(points):
                near = solid.sdf(points) <= reach
                result[x, y, z] |= near.reshape(mesh[0].shape)
        return result

    def occupancy(self, resolution: int) -> Mask:
        """Whether the centre of each cell is inside, (R, R, R) indexed x, y, z."""
        return self._within(_axis(resolution), 0.0)

    def surface_voxels(self, resolution: int) -> Mask:
        """The cells (R, R, R) that the surface crosses.

        A cell counts when its corners and centre lie on different sides, or when its centre is
        outside and the surface nearer than half a cell.
        """
        inside = self.occupancy(resolution)
        near = self._within(_axis(resolution), 0.5 / resolution) & ~inside
        corners = np.linspace(-0.5, 0.5, resolution + 1, dtype=np.float32)
        # Faces often lie in the cube's own; a hair of depth gives them to the cells inside.
        signs = self._within(corners, -1e-4)
        some, every = signs, signs
        for axis in range(3):
            first = [slice(None)] * 3
            second = [slice(None)] * 3
            first[axis], second[axis] = slice(None, -1), slice(1, None)
            some = some[tuple(first)] | some[tuple(second)]
            every = every[tuple(first)] & every[tuple(second)]
        return near | ((some | inside) & ~(every & inside))

    def surface(
        self, count: int, rng: np.random.Generator
    ) -> tuple[Array, Array, NDArray[np.int16]]:
        """Points (N, 3), unit normals (N, 3) and part indices (N,), uniform over the surface.

        Random lines cross every surface in proportion to its area (Crofton), so the points
        where they enter a solid, less those buried in another, need no weights. Each solid has
        its own beam of lines, all of one density: as many as its ball's cross-section asks.
        """
        low, high = self.hull.bounds()
        centers = (low + high) / 2
        radii = np.linalg.norm(high - low, axis=1) / 2
        batches: list[tuple[Array, Array, NDArray[np.int16]]] = []
        missing = count
        while missing > 0:
            numbers = rng.poisson((2 * missing + 64) * (radii / radii.max()) ** 2)
            found: list[tuple[Array, Array, NDArray[np.int16]]] = []
            for k, solid in enumerate(self.solids):
                origins, directions = _beam(centers[k], radii[k], numbers[k], rng)
                crossings = solid.entries(origins, directions)
                entry, line = np.nonzero(np.isfinite(crossings))
                points = origins[line] + crossings[entry, line, None] * directions[line]
                part = np.full(len(points), self.solid_parts[k])
                found.append((points, solid.normals(points), part))
            points, normals, parts = (np.concatenate(c) for c in zip(*found, strict=True))
            exposed = self.sdf(points) > -1e-4
            batches.append((points[exposed], normals[exposed], parts[exposed]))
            missing -= int(exposed.sum())
        points, normals, parts = (np.concatenate(c) for c in zip(*batches, strict=True))
        order = rng.permutation(len(points))[:count]
        return points[order], normals[order], parts[order]

    def mesh(self, resolution: int = 64) -> tuple[Array, NDArray[np.int64], Array]:
        """Vertices (V, 3), faces (F, 3) and vertex colours (V, 3) by marching cubes.

        Needs scikit-image, from the `eval` extra.
        """
        from skimage.measure import marching_cubes

        step = 1 / resolution
        # One and a half cells of margin keep the surface closed where it touches the unit cube.
        axis = (np.arange(resolution + 3) * step - 0.5 - step).astype(np.float32)
        points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        volume = self.sdf(points).reshape((len(axis),) * 3)
        vertices, faces, _, _ = marching_cubes(volume, 0.0, spacing=(step,) * 3)
        vertices = (vertices + axis[0]).astype(np.float32)
        return vertices, faces.astype(np.int64), self.colors(vertices)


def grid(resolution: int) -> Array:
    """Centres (R^3, 3) of the cells of [-0.5, 0.5]^3, x slowest, z fastest."""
    axis = _axis(resolution)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def _axis(resolution: int) -> Array:
    return ((np.arange(resolution) + 0.5) / resolution - 0.5).astype(np.float32)


def _beam(
    center: Array, radius: float, count: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Origins and unit directions (N, 3) of isotropic lines, uniform through a ball."""
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    across = np.cross(directions, np.eye(3)[np.abs(directions).argmin(axis=1)])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    up = np.cross(directions, across)
    distance = radius * np.sqrt(rng.random((count, 1)))
    angle = 2 * np.pi * rng.random((count, 1))
    offset = distance * (np.cos(angle) * across + np.sin(angle) * up) - 2 * radius * directions
    return (center + offset).astype(np.float32), directions.astype(np.float32)
