"""What the mini's latent encoder reads of a mesh: distance and colour at 4^3 points of each voxel.

The released encoder reads picture features instead (`encoding.project_features`); the mini's was
trained on the procedural world's exact distances, which these are for a mesh.

Legend: N voxels, K pairs of points and triangles.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from modalign import Mesh

from .voxels import Floats, Integers, Voxels, inside

SCALE = 4  # points per side of a voxel: vertices of the mesh grid
REACH = 3.0  # cells of the mesh grid, beyond which distances are cut and colours are 0
# Objects are as long as the grid; cut off before its faces, their ends have a vertex outside.
MARGIN = 0.75
CHANNELS = 4 * SCALE**3
UNCLEAR = 0.01  # share of points whose inside the three axes may disagree on
ON_SURFACE = 1e-3  # cells
PAIRS_AT_ONCE = 1 << 17


def distance_features(mesh: Mesh, voxels: Voxels) -> Tensor:
    """Features (N, 256): 64 signed distances over `REACH`, then 64 colours (r, g, b) in -1..1.

    Raises:
        ValueError: the mesh has no clear inside, so its distances have no sign.
    """
    cells = voxels.resolution * SCALE
    step = np.stack(np.meshgrid(*[np.arange(SCALE)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    vertices = voxels.xyz[:, None] * SCALE + step  # (N, 64, 3)
    votes = inside(voxels.corners, cells)[tuple(np.moveaxis(vertices, -1, 0))]
    distance, color = _nearest(mesh, voxels, vertices)
    # On the surface itself a distance has no sign to lose.
    unclear = float((((votes == 1) | (votes == 2)) & (distance > ON_SURFACE)).mean())
    if unclear > UNCLEAR:
        raise ValueError(
            f"the mesh has {voxels.open_edges} open edges and no clear inside at {unclear:.0%} of "
            "the points that its encoder reads; close it (pymeshfix does), or keep its voxels "
            "alone, which need no inside"
        )
    signed = np.where(votes >= 2, -distance, distance)
    beyond = np.abs(vertices - cells / 2).max(axis=-1) - (cells / 2 - MARGIN)
    signed = np.maximum(signed, beyond)
    color = np.where((np.abs(signed) < REACH)[..., None], color * 2 - 1, 0.0)
    count = len(voxels.xyz)
    columns = [signed.clip(-REACH, REACH).reshape(count, -1) / REACH, color.reshape(count, -1)]
    return torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32))


def _nearest(mesh: Mesh, voxels: Voxels, vertices: Integers) -> tuple[Floats, Floats]:
    """Distance (N, 64) in cells, at most `REACH`, and colour (N, 64, 3) of the nearest surface.

    A surface nearer than `REACH` meets the voxel or one beside it, as a voxel is longer.
    """
    cells = voxels.resolution * SCALE
    corners = (voxels.corners + 0.5) * cells
    colors = mesh.vertex_colors[mesh.faces]  # (F, 3, 3)
    voxel, triangle = _candidates(voxels)
    best = np.empty(vertices.shape[:2])
    color = np.zeros((*vertices.shape[:2], 3))
    starts = np.searchsorted(voxel, np.arange(len(voxels.xyz) + 1))
    width, first = vertices.shape[1], 0
    while first < len(voxels.xyz):
        # As many voxels as fit, at least one; each meets a triangle, so none is without.
        limit = starts[first] + PAIRS_AT_ONCE // width
        last = max(first + 1, int(np.searchsorted(starts, limit, side="right")) - 1)
        pairs = slice(starts[first], starts[last])
        owner, faces = voxel[pairs], triangle[pairs]
        distance, shares = closest(vertices[owner].astype(np.float64), corners[faces])
        nearest = np.minimum.reduceat(distance, starts[first:last] - starts[first])
        pair, point = np.nonzero((distance == nearest[owner - first]) & (distance <= REACH))
        # Of equally near triangles the first: it is written last.
        pair, point = pair[::-1], point[::-1]
        color[owner[pair], point] = np.einsum(
            "kc,kcr->kr", shares[pair, point], colors[faces[pair]]
        )
        best[first:last] = nearest.clip(max=REACH)
        first = last
    return best, color


def _candidates(voxels: Voxels) -> tuple[Integers, Integers]:
    """Pairs of a voxel and a triangle that meets it or one of its 26 neighbours, by voxel."""
    at = voxels.at
    starts = np.searchsorted(voxels.voxel, np.arange(len(voxels.xyz) + 1))
    neighbours = at.neighbours.numpy().astype(np.int64)  # (N, 27)
    row, tap = np.nonzero(neighbours < len(at))
    beside = neighbours[row, tap]
    counts = starts[beside + 1] - starts[beside]
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    triangle = voxels.triangle[np.repeat(starts[beside], counts) + number]
    keys = np.unique(np.repeat(row, counts) * len(voxels.corners) + triangle)
    row, triangle = keys // len(voxels.corners), keys % len(voxels.corners)
    # Most lie beside the voxel, but beyond reach of its points.
    first = voxels.xyz[row] * SCALE
    box = (voxels.corners[triangle] + 0.5) * voxels.resolution * SCALE
    gap = np.maximum(first - box.max(axis=1), box.min(axis=1) - (first + SCALE - 1)).clip(0)
    near = (gap * gap).sum(axis=1) <= REACH**2
    return row[near], triangle[near]


def closest(points: Floats, corners: Floats) -> tuple[Floats, Floats]:
    """Distance (K, M) from points (K, M, 3) to triangles (K, 3, 3), and the nearest point's shares.

    Shares (K, M, 3) of the corners. The nearest point lies above the triangle, or on the nearest
    of its three edges; everything follows from the products of offset and edges.
    """
    edges = corners[:, 1:] - corners[:, :1]  # (K, 2, 3)
    offset = points - corners[:, :1]
    square = np.einsum("kmc,kmc->km", offset, offset)
    along = offset @ edges.transpose(0, 2, 1)  # (K, M, 2)
    one, two = along[..., 0], along[..., 1]
    gram = edges @ edges.transpose(0, 2, 1)
    g11, g12, g22 = gram[:, 0, 0, None], gram[:, 0, 1, None], gram[:, 1, 1, None]
    g33 = g11 - 2 * g12 + g22

    def at(s: Floats, t: Floats) -> Floats:
        result: Floats = (
            square - 2 * (s * one + t * two) + s * s * g11 + 2 * s * t * g12 + t * t * g22
        )
        return result

    zero = np.zeros_like(one)
    third = _clipped(two - one + g11 - g12, g33)
    options = [(_clipped(one, g11), zero), (zero, _clipped(two, g22)), (1 - third, third)]
    area = g11 * g22 - g12 * g12
    with np.errstate(divide="ignore", invalid="ignore"):
        s, t = (g22 * one - g12 * two) / area, (g11 * two - g12 * one) / area
        above = (s >= 0) & (t >= 0) & (s + t <= 1)  # false where there is no area
    best = np.where(above, at(np.where(above, s, 0), np.where(above, t, 0)), np.inf)
    s, t = np.where(above, s, 0), np.where(above, t, 0)
    for u, v in options:
        squared = at(u, v)
        nearer = squared < best
        best, s, t = (np.where(nearer, x, y) for x, y in ((squared, best), (u, s), (v, t)))
    return np.sqrt(best.clip(0)), np.stack([1 - s - t, s, t], axis=-1)


def _clipped(value: Floats, scale: Floats) -> Floats:
    result: Floats = (value / np.where(scale > 0, scale, 1)).clip(0, 1)
    return result
