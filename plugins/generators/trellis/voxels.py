"""A mesh as voxels: those that its surface meets, exactly, and where its inside is.

Legend: V vertices, F triangles, N voxels, P pairs of a voxel and a triangle that meets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from modalign import Mesh

from .sparse import Coordinates

INSET = 1e-6  # vertices are clipped to -+(0.5 - INSET), so that none lies beyond the last voxel
TOLERANCE = 1e-9  # of the overlap test; touching counts
TRIANGLES_AT_ONCE = 1 << 15
COLUMNS_AT_ONCE = 1 << 20

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Voxels:
    """The voxels that a surface meets.

    Attributes:
        resolution: R, voxels per side of the cube -0.5..0.5.
        xyz: (N, 3), each once, sorted.
        corners: (F, 3, 3) triangles in that cube.
        voxel: (P,) row of `xyz` of each pair, ascending.
        triangle: (P,) row of `corners` of each pair.
        open_edges: edges of the mesh that an odd number of triangles share; 0 if it is closed.
    """

    resolution: int
    xyz: Integers
    corners: Floats
    voxel: Integers
    triangle: Integers
    open_edges: int

    @cached_property
    def at(self) -> Coordinates:
        """The same as coordinates of one batch element."""
        rows = torch.nn.functional.pad(torch.from_numpy(self.xyz), (1, 0))
        return Coordinates(rows.to(torch.int32), 1)


def voxelize(mesh: Mesh, resolution: int = 64) -> Voxels:
    """The voxels that the surface of `mesh` meets; closed or not, nothing inside is filled.

    The mesh is centred, its longest side made 1, and its vertices clipped by a hair, as the
    released models were trained. A triangle meets a voxel when the two closed sets share a point.

    Raises:
        ValueError: the mesh has no triangle, or all of them together no area.
    """
    points = normalized(mesh)
    corners = points[mesh.faces]
    voxel, triangle = [], []
    for first in range(0, len(corners), TRIANGLES_AT_ONCE):
        cells, owners = _met(corners[first : first + TRIANGLES_AT_ONCE], resolution)
        voxel.append((cells[:, 0] * resolution + cells[:, 1]) * resolution + cells[:, 2])
        triangle.append(owners + first)
    keys, owners = np.concatenate(voxel), np.concatenate(triangle)
    order = np.lexsort((owners, keys))
    unique, rows = np.unique(keys[order], return_inverse=True)
    xyz = np.stack([unique // resolution**2, unique // resolution % resolution], axis=1)
    xyz = np.concatenate([xyz, unique[:, None] % resolution], axis=1)
    return Voxels(resolution, xyz, corners, rows, owners[order], open_edges(mesh))


def normalized(mesh: Mesh) -> Floats:
    """Vertices (V, 3), centred, the longest side 1, inside -+(0.5 - INSET).

    Raises:
        ValueError: the mesh has no triangle, or all of them together no area.
    """
    if len(mesh.faces) == 0:
        raise ValueError("the mesh has no triangles, so there is no surface to voxelise")
    points = mesh.vertices.astype(np.float64)
    used = points[mesh.faces.reshape(-1)]
    low, high = used.min(axis=0), used.max(axis=0)
    side = float((high - low).max())
    points = (points - (low + high) / 2) / (side or 1)
    a, b, c = (points[mesh.faces[:, k]] for k in range(3))
    if not np.cross(b - a, c - a).any():
        raise ValueError(
            f"all {len(mesh.faces)} triangles of the mesh have no area, so there is no surface to "
            "voxelise; check its vertices"
        )
    return points.clip(INSET - 0.5, 0.5 - INSET)


def open_edges(mesh: Mesh) -> int:
    """Edges that an odd number of triangles share, equal vertices counted as one."""
    _, welded = np.unique(mesh.vertices, axis=0, return_inverse=True)
    faces = welded.reshape(-1)[mesh.faces]
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    return int((counts % 2).sum())


def meets(corners: Floats, centre: Floats, half: float | Floats) -> Mask:
    """Whether triangle (K, 3, 3) and the closed cube around `centre` (K, 3) share a point, (K,).

    They do unless one of 13 axes separates them: the cube's three, the triangle's normal, and the
    nine products of an edge of each.
    """
    vertices = corners - centre[:, None]
    reach = np.broadcast_to(np.asarray(half, np.float64) + TOLERANCE, (len(corners),))
    result: Mask = (vertices.min(axis=1) <= reach[:, None]).all(axis=1)
    result &= (vertices.max(axis=1) >= -reach[:, None]).all(axis=1)
    edges = vertices[:, [1, 2, 0]] - vertices  # (K, 3, 3)
    normal = np.cross(edges[:, 0], edges[:, 1])
    distance = np.abs((normal * vertices[:, 0]).sum(axis=1))
    result &= distance <= reach * np.abs(normal).sum(axis=1)
    for k in range(3):
        for axis in range(3):
            # The product of edge k with a unit vector has two entries.
            one, two = (axis + 1) % 3, (axis + 2) % 3
            u, w = edges[:, k, two], -edges[:, k, one]
            along = vertices[:, :, one] * u[:, None] + vertices[:, :, two] * w[:, None]
            span = reach * (np.abs(u) + np.abs(w))
            result &= (along.min(axis=1) <= span) & (along.max(axis=1) >= -span)
    return result


def _met(corners: Floats, resolution: int) -> tuple[Integers, Integers]:
    """Cells (P, 3) and triangles (P,) that meet, found from coarse cells to fine ones.

    A triangle enters at the level where its bounding box spans at most two cells a side.
    """
    levels = int(np.ceil(np.log2(resolution)))
    fine = 1 / resolution
    low, high = corners.min(axis=1) + 0.5, corners.max(axis=1) + 0.5
    extent = np.maximum((high - low).max(axis=1), 1e-12)
    entry = np.floor(np.log2(2**levels * fine / extent)).clip(0, levels).astype(np.int64)
    cells, owners = np.zeros((0, 3), np.int64), np.zeros(0, np.int64)
    corner = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    for level in range(levels + 1):
        side = fine * 2 ** (levels - level)
        cells = (cells[:, None] * 2 + corner).reshape(-1, 3)
        owners = np.repeat(owners, len(corner))
        new = np.nonzero(entry == level)[0]
        first = np.floor((low[new] - TOLERANCE) / side).astype(np.int64)
        last = np.floor((high[new] + TOLERANCE) / side).astype(np.int64)
        # Three cells a side when a box of one cell's size straddles two borders.
        for offset in np.ndindex(3, 3, 3):
            there = first + offset
            within = (there <= last).all(axis=1)
            cells = np.concatenate([cells, there[within]])
            owners = np.concatenate([owners, new[within]])
        valid = ((cells >= 0) & (cells * side < 1 - TOLERANCE)).all(axis=1)
        cells, owners = cells[valid], owners[valid]
        kept = meets(corners[owners], (cells + 0.5) * side - 0.5, side / 2)
        cells, owners = cells[kept], owners[kept]
    return cells, owners


def inside(corners: Floats, resolution: int) -> NDArray[np.int8]:
    """How many axes say that a vertex of the grid is inside, (R + 1, R + 1, R + 1) in 0..3.

    Along each axis, lines through the vertices are followed and crossings counted by direction: a
    point is inside where they do not cancel. Of a closed mesh the three axes say the same.
    """
    votes = np.zeros((resolution + 1,) * 3, np.int8)
    for axis in range(3):
        turned = np.roll(corners, -axis - 1, axis=2)  # the axis comes last
        wound = _winding(turned, resolution) != 0
        votes += np.moveaxis(wound, (0, 1, 2), [(axis + 1) % 3, (axis + 2) % 3, axis])
    return votes


def _winding(corners: Floats, resolution: int) -> Integers:
    """Signed crossings above each grid vertex along the last axis, (R + 1, R + 1, R + 1)."""
    size = resolution + 1
    # No line through an edge or a vertex of what was modelled on a grid.
    nudge = np.array([np.sqrt(2), np.sqrt(3)]) * 1e-5
    grid = (corners + 0.5) * resolution
    grid[:, :, :2] -= nudge
    first = np.ceil(grid[:, :, :2].min(axis=1)).astype(np.int64)
    last = np.floor(grid[:, :, :2].max(axis=1)).astype(np.int64)
    spans = (last - first + 1).clip(0)
    counts = np.zeros((size, size, size + 1), np.int64)
    for rows in _chunks(spans.prod(axis=1)):
        each = spans[rows].prod(axis=1)
        row = np.repeat(rows, each)
        number = np.arange(len(row)) - np.repeat(np.cumsum(each) - each, each)
        width = spans[row, 1]
        column = first[row] + np.stack([number // width, number % width], axis=1)
        a, b, c = np.moveaxis(grid[row], 1, 0)
        shares = np.stack(
            [_turn(b, c, column), _turn(c, a, column), _turn(a, b, column)], axis=1
        )  # (K, 3), their sum twice the signed area
        hit = (shares > 0).all(axis=1) | (shares < 0).all(axis=1)
        shares, column = shares[hit], column[hit]
        total = shares.sum(axis=1)
        height = (shares * grid[row[hit], :, 2]).sum(axis=1) / total
        level = np.floor(height).astype(np.int64).clip(-1, resolution) + 1
        np.add.at(counts, (column[:, 0], column[:, 1], level), np.sign(total).astype(np.int64))
    # A vertex at level k has those crossings above it that were counted beyond k.
    above: Integers = counts[:, :, ::-1].cumsum(axis=2)[:, :, ::-1][:, :, 1:]
    return above


def _turn(p: Floats, q: Floats, at: Integers) -> Floats:
    """Twice the signed area of the triangle p, q, `at` seen along the last axis, (K,)."""
    result: Floats = (q[:, 0] - p[:, 0]) * (at[:, 1] - p[:, 1]) - (q[:, 1] - p[:, 1]) * (
        at[:, 0] - p[:, 0]
    )
    return result


def _chunks(weights: Integers) -> Iterator[Integers]:
    """Rows with a weight, in runs of about `COLUMNS_AT_ONCE` together."""
    rows = np.nonzero(weights)[0]
    places = np.cumsum(weights[rows]) // COLUMNS_AT_ONCE
    for part in np.split(rows, np.nonzero(np.diff(places))[0] + 1):
        if len(part):
            yield part
