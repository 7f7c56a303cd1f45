"""Voxels that split into some of their eight children.

Legend: N voxels, M children that exist.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from modalign_plugins.generators.trellis.sparse import Coordinates, child_taps
from torch import Tensor

NUM_CHILDREN = 8
CHUNK = 1 << 18  # children at a time: 27 neighbours of each are looked up in 64 bits


@dataclass(frozen=True)
class Subdivision:
    """Which children of which voxels exist; shared by the decoders of shape and texture.

    Attributes:
        fine: the M children, siblings consecutive.
        slot: 8 times the parent's row plus the child's number x + 2 y + 4 z, (M,).
    """

    fine: Coordinates
    slot: Tensor

    @property
    def parent(self) -> Tensor:
        """Row of every child's parent, (M,)."""
        return torch.div(self.slot, NUM_CHILDREN, rounding_mode="floor")

    @classmethod
    def of(cls, coarse: Coordinates, exists: Tensor) -> Subdivision:
        """The children of `coarse` that a boolean table (N, 8) names."""
        slot = exists.flatten().nonzero()[:, 0]
        parent, child = torch.div(slot, NUM_CHILDREN, rounding_mode="floor"), slot % NUM_CHILDREN
        bits = torch.stack([child & 1, child >> 1 & 1, child >> 2], dim=1)
        rows = coarse.coords[parent]
        xyz = rows[:, 1:] * 2 + bits.to(rows.dtype)
        fine = Coordinates(torch.cat([rows[:, :1], xyz], dim=1), coarse.batch_size)
        fine.neighbours = _neighbours(coarse, exists, slot)  # known already: nothing to search
        return cls(fine, slot)

    def channels_to_space(self, feats: Tensor) -> Tensor:
        """Each voxel's (N, 8C) channels, eight runs of C, handed to its children: (M, C)."""
        return feats.reshape(len(feats) * NUM_CHILDREN, -1)[self.slot]


def _neighbours(coarse: Coordinates, exists: Tensor, slot: Tensor) -> Tensor:
    """Rows of the 27 neighbours of every child, (M, 27) int32, M where there is none."""
    total = len(slot)
    table = coarse.neighbours.new_full((len(coarse) + 1, NUM_CHILDREN), total)
    table.view(-1)[slot] = torch.arange(total, dtype=torch.int32, device=slot.device)
    tap, sibling = (_x_fastest(part) for part in child_taps(slot.device))  # (8, 27) each
    sibling = _swapped(sibling)
    rows = []
    for run in slot.split(CHUNK):
        parent, child = torch.div(run, NUM_CHILDREN, rounding_mode="floor"), run % NUM_CHILDREN
        above = coarse.neighbours[parent].long().gather(1, tap[child])  # (chunk, 27)
        rows.append(table.view(-1)[above * NUM_CHILDREN + sibling[child]])
    return torch.cat(rows)


def _swapped(child: Tensor) -> Tensor:
    """Child numbers 4 x + 2 y + z as x + 2 y + 4 z, and back."""
    return (child & 1) << 2 | child & 2 | child >> 2


def _x_fastest(rows: Tensor) -> Tensor:
    """Rows (8, ...) per child, which are numbered z fastest, in the order x fastest."""
    return rows[_swapped(torch.arange(NUM_CHILDREN, device=rows.device))]
