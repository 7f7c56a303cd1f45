"""Flexible dual grids: a vertex in every voxel, a quad around every grid edge that a surface cuts.

Voxel (i, j, k) spans [i, i + 1] x [j, j + 1] x [k, k + 1]. Its three flags are of the edges that
end in its far corner: along x from (i, j + 1, k + 1) to (i + 1, j + 1, k + 1), and likewise along y
and z. Four voxels meet at such an edge, and their vertices make a quad.

A flag says that a surface cuts the edge, not from which side. Which way a surface faces follows
from the surface itself: neighbouring quads agree, and every piece encloses a positive volume.

Legend: N voxels, Q quads, F triangles, E edges that two triangles share.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from modalign_plugins.generators.trellis.sparse import SparseTensor
from torch import Tensor
from torch.nn.functional import softplus

CENTRE_TAP = 13
X, Y, Z = 9, 3, 1  # steps among the 27 taps
# Around an edge along x, y, z: the voxel itself, then counter-clockwise seen from the edge's far
# end, as taps of the table of neighbours.
QUAD_TAPS = (
    (CENTRE_TAP, CENTRE_TAP + Y, CENTRE_TAP + Y + Z, CENTRE_TAP + Z),
    (CENTRE_TAP, CENTRE_TAP + Z, CENTRE_TAP + Z + X, CENTRE_TAP + X),
    (CENTRE_TAP, CENTRE_TAP + X, CENTRE_TAP + X + Y, CENTRE_TAP + Y),
)


@dataclass(frozen=True)
class DualGrid:
    """What the shape decoder's 7 numbers per voxel mean.

    Attributes:
        offset: the vertex within its voxel, (N, 3), from -0.5 to 1.5 voxels of its near corner.
        crossed: whether the three edges of the far corner are cut, (N, 3) bool.
        split: positive weight (N,) by which a quad is cut in two.
    """

    offset: Tensor
    crossed: Tensor
    split: Tensor

    @classmethod
    def of(cls, feats: Tensor) -> DualGrid:
        """Of features (N, 7)."""
        return cls(
            offset=2 * feats[:, :3].sigmoid() - 0.5,
            crossed=feats[:, 3:6] > 0,
            split=softplus(feats[:, 6]),
        )


def extract_faces(voxels: SparseTensor) -> tuple[DualGrid, Tensor]:
    """The dual grid of one object's features (N, 7), and triangles (F, 3) of voxel rows."""
    grid = DualGrid.of(voxels.feats)
    triangles = split_quads(quads(voxels, grid.crossed), grid.split)
    vertices = voxels.at.coords[:, 1:] + grid.offset
    return grid, facing_outward(vertices, triangles)


def quads(voxels: SparseTensor, crossed: Tensor) -> Tensor:
    """Voxel rows (Q, 4) around every cut edge whose four voxels all exist."""
    found = []
    for axis, taps in enumerate(QUAD_TAPS):
        owner = crossed[:, axis].nonzero()[:, 0]
        found.append(voxels.at.neighbours[owner][:, list(taps)].long())
    rows = torch.cat(found)
    return rows[(rows < len(voxels.at)).all(dim=1)]


def split_quads(rows: Tensor, split: Tensor) -> Tensor:
    """Two triangles of every quad (Q, 4): (2Q, 3), the two of a quad one after the other.

    The cut joins corners 0 and 2 where the product of their weights is above that of 1 and 3.
    """
    w = split[rows]
    even = (w[:, 0] * w[:, 2] > w[:, 1] * w[:, 3])[:, None]
    return torch.where(even, rows[:, [0, 1, 2, 0, 2, 3]], rows[:, [0, 1, 3, 3, 1, 2]]).view(-1, 3)


def facing_outward(vertices: Tensor, faces: Tensor) -> Tensor:
    """The triangles (F, 3), turned so that neighbours agree and every piece faces outward.

    A piece is what edges of exactly two triangles hold together. It faces outward when the volume
    it encloses, seen from its mean corner, is positive: exact for a closed surface, a convention
    for an open one. A piece with one side only, such as a Moebius strip, is turned as a whole.
    """
    total = len(faces)
    if total == 0:
        return faces
    left, right, opposed = _shared_edges(faces)
    # Every triangle twice, as it is (f) and turned (f + F): what must face alike is joined.
    other = torch.where(opposed, right, right + total)
    turned = torch.where(opposed, right + total, right)
    label = components(torch.cat([left, left + total]), torch.cat([other, turned]), 2 * total)
    turn = label[:total] > label[total:]
    _, piece = torch.unique(torch.minimum(label[:total], label[total:]), return_inverse=True)
    faces = torch.where(turn[:, None], faces.flip(1), faces)

    inside_out = (_volumes(vertices.cpu(), faces.cpu(), piece.cpu()) < 0).to(faces.device)
    return torch.where(inside_out[piece][:, None], faces.flip(1), faces)


def _volumes(vertices: Tensor, faces: Tensor, piece: Tensor) -> Tensor:
    """Six times the volume that each piece encloses, seen from its mean corner.

    On the CPU: sums in 64 bits, in the same order every time.
    """
    corners = vertices.double()[faces]  # (F, 3, 3)
    count = torch.bincount(piece)
    centre = corners.new_zeros(len(count), 3).index_add_(0, piece, corners.mean(dim=1))
    a, b, c = (corners - (centre / count[:, None])[piece][:, None]).unbind(dim=1)
    volume = (torch.linalg.cross(a, b) * c).sum(dim=1)
    return corners.new_zeros(len(count)).index_add_(0, piece, volume)


def components(left: Tensor, right: Tensor, total: int) -> Tensor:
    """The smallest node that is connected with each of `total`, given edges left - right (E,)."""
    label = torch.arange(total, device=left.device)
    while True:
        low = torch.minimum(label[left], label[right])
        high = torch.maximum(label[left], label[right])
        apart = low != high
        if not bool(apart.any()):
            return label
        left, right = left[apart], right[apart]
        label.scatter_reduce_(0, high[apart], low[apart], "amin")
        while not torch.equal(label, label[label]):
            label = label[label]


def _shared_edges(faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of triangles (E,), (E,) at an edge of exactly two; True where they run it opposed."""
    start, end = faces.flatten(), faces.roll(-1, dims=1).flatten()  # (3F,)
    key = torch.minimum(start, end) * (faces.max() + 1) + torch.maximum(start, end)
    key, order = key.sort(stable=True)
    differs = key[1:] != key[:-1]
    edge = torch.ones(1, dtype=torch.bool, device=faces.device)
    first = torch.cat([edge, differs])  # first of a run of equal edges
    last = torch.cat([differs, edge])
    pair = first[:-1] & last[1:] & ~differs  # a run of exactly two
    one, two = order[:-1][pair], order[1:][pair]
    return one // 3, two // 3, (start[one] < end[one]) != (start[two] < end[two])
