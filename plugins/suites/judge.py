"""Names what a mesh shows: family by geometry, colours of its main and second part.

The judge never learns what was asked for. It knows the world only through exemplars: true objects
of the training split, 40 of each family.

1. Points are drawn on the mesh, uniform in area; those on walls of enclosed cavities are left out.
   The bounding box is centred and its longest side scaled to 1.
2. The cells of a 24^3 grid that hold points are compared with the cells that each exemplar's
   surface crosses: the distance in cells from one set to the other, at most 4, averaged over a
   set's cells, both ways, and added. The nearest exemplar's family is the mesh's.
3. Each point belongs to the part of the nearest exemplar that it is nearest to, and votes for the
   palette colour nearest to its own. Most votes name the colour of the main and the second part.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modalign import Mesh

from .world import Array, Toy, World

RESOLUTION = 24
FARTHEST = 4  # cells; beyond it, farther does not count as worse
PER_FAMILY = 40
POINTS = 20_000  # about ten in every cell of a surface
# How far outside a point its air is looked for, in cells: past its own cell, whatever the angle.
PROBE = 1.75

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Verdict:
    """What a mesh shows. `second` is None if no point lies near the second part."""

    family: str
    color: str
    second: str | None


class NothingToJudge(ValueError):
    """A mesh without any area."""


class Judge:
    """Compares meshes with true objects of a world.

    Args:
        world: whose families and colours are told apart.
        per_family: exemplars of each family.
        split: where they are taken from.
    """

    def __init__(self, world: World, per_family: int = PER_FAMILY, split: str = "train") -> None:
        self.colors = tuple(world.palette)
        self._palette = np.array(list(world.palette.values()), np.float32)  # (C, 3)
        self.exemplars = collect(world, per_family, split)
        cells = [toy.surface_voxels(RESOLUTION) for toy in self.exemplars]
        self._distances = np.stack([distances(own).ravel() for own in cells])  # (E, R^3)
        places = [np.flatnonzero(own) for own in cells]
        self._counts = np.array([len(own) for own in places])
        self._starts = np.cumsum(self._counts) - self._counts
        self._cells = np.concatenate(places)  # cells of all exemplars, one after the other

    def __call__(self, mesh: Mesh) -> Verdict:
        """The verdict on a mesh; the same on every call.

        Raises:
            NothingToJudge: the mesh has no area.
        """
        points, colors = visible_points(mesh, POINTS, np.random.default_rng(0))
        exemplar = self.exemplars[int(self.differences(occupied(points)).argmin())]
        votes = self._nearest_color(colors)
        owner = exemplar.part_ids(points)
        second = next(k for k, part in enumerate(exemplar.parts) if part is exemplar.second)
        main = self._elected(votes[owner == 0])
        return Verdict(
            family=exemplar.family,
            # A mesh without any point of the main part is judged by all it has.
            color=main or self.colors[int(np.bincount(votes).argmax())],
            second=self._elected(votes[owner == second]),
        )

    def differences(self, cells: Mask) -> Array:
        """How far the surface cells (R, R, R) are from those of each exemplar, (E,), in cells."""
        there = self._distances[:, np.flatnonzero(cells)].mean(axis=1, dtype=np.float32)
        back = distances(cells).ravel()[self._cells].astype(np.float32)
        summed: Array = there + np.add.reduceat(back, self._starts) / self._counts
        return summed

    def _nearest_color(self, colors: Array) -> NDArray[np.intp]:
        """Index (N,) of the palette's colour nearest to each of RGB (N, 3)."""
        # |c - p|^2 less |c|^2, which is the same for every p.
        squares = np.square(self._palette).sum(axis=1) - 2 * colors @ self._palette.T
        return squares.argmin(axis=1)

    def _elected(self, votes: NDArray[np.intp]) -> str | None:
        return self.colors[int(np.bincount(votes).argmax())] if len(votes) else None


def collect(world: World, per_family: int, split: str) -> list[Toy]:
    """The first `per_family` objects of each family in a split, by index."""
    found: dict[str, list[Toy]] = {family: [] for family in world.families}
    index = 0
    while any(len(toys) < per_family for toys in found.values()):
        toy = world.object(index, split)
        if len(found[toy.family]) < per_family:
            found[toy.family].append(toy)
        index += 1
    return [toy for toys in found.values() for toy in toys]


def visible_points(mesh: Mesh, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Points (N, 3) on the outer surface, in the unit box, and their colours (N, 3).

    A point is left out if the air just outside it is enclosed: not reachable from outside the box
    through cells without surface. Meshes may have such cavities between two walls; nobody sees
    them. If nothing but such points were found, the mesh is inside out, and all are kept.
    """
    corners = mesh.vertices[mesh.faces]  # (F, 3, 3)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normals, axis=1)
    if not area.sum() > 0:
        raise NothingToJudge(f"a mesh of {len(mesh.faces)} faces has no area to be judged")
    face = rng.choice(len(area), count, p=area / area.sum())
    # Source: R. Osada et al., "Shape distributions" (2002), eq. 1.
    root, along = np.sqrt(rng.random(count)), rng.random(count)
    weights = np.stack([1 - root, root * (1 - along), root * along], axis=1)
    points = np.einsum("nk,nkd->nd", weights, corners[face])
    colors = np.einsum("nk,nkd->nd", weights, mesh.vertex_colors[mesh.faces[face]])
    # Corners and centres leave no holes by chance where the faces are smaller than the cells.
    cover = np.concatenate([points, corners[area > 0].reshape(-1, 3), corners.mean(axis=1)])
    low, high = cover.min(axis=0), cover.max(axis=0)
    points, cover = ((x - (low + high) / 2) / (high - low).max() for x in (points, cover))
    outwards = normals[face] / np.maximum(area[face, None], 1e-30)
    surface = occupied(cover)
    cavity = ~surface & ~reachable(surface)
    seen = ~cavity[cell_of(points + PROBE / RESOLUTION * outwards)]
    seen = seen if seen.any() else ~seen
    return points[seen].astype(np.float32), colors[seen].astype(np.float32)


def cell_of(points: Array) -> tuple[NDArray[np.intp], ...]:
    """Cells of points (N, 3), as indices x, y, z; points outside the box fall into its rim."""
    cells = np.floor((points + 0.5) * RESOLUTION).astype(np.intp).clip(0, RESOLUTION - 1)
    return tuple(cells.T)


def occupied(points: Array) -> Mask:
    """Cells (R, R, R) that hold a point."""
    cells = np.zeros((RESOLUTION,) * 3, np.bool_)
    cells[cell_of(points)] = True
    return cells


def grown(cells: Mask) -> Mask:
    """Cells and those that share a face with one."""
    wider = cells.copy()
    wider[1:] |= cells[:-1]
    wider[:-1] |= cells[1:]
    wider[:, 1:] |= cells[:, :-1]
    wider[:, :-1] |= cells[:, 1:]
    wider[:, :, 1:] |= cells[:, :, :-1]
    wider[:, :, :-1] |= cells[:, :, 1:]
    return wider


def reachable(surface: Mask) -> Mask:
    """Cells without surface that a path joins to the outside of the grid."""
    free = np.pad(~surface, 1, constant_values=True)
    reached = np.zeros_like(free)
    reached[0, 0, 0] = True
    while True:
        wider = grown(reached) & free
        if np.array_equal(wider, reached):
            return reached[1:-1, 1:-1, 1:-1]
        reached = wider


def distances(cells: Mask) -> NDArray[np.uint8]:
    """Steps over faces from every cell to the nearest of `cells`, at most FARTHEST."""
    result = np.full(cells.shape, FARTHEST, np.uint8)
    result[cells] = 0
    for step in range(1, FARTHEST):
        wider = grown(cells)
        result[wider & ~cells] = step
        cells = wider
    return result
