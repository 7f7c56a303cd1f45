"""Sparse voxel tensors: coordinates with shared caches, and row movements that are cheap to undo.

Every index table (neighbours, windows, pooling, batch segments) depends on the coordinates alone,
so it is kept on the `Coordinates` object and shared by all layers, sampling steps and decoders.

Legend: N voxels, M coarse voxels, B batch elements, C channels; coordinates are (batch, x, y, z).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .groups import Segments, TokenGroups
from .rows import Fold

Pair = tuple[Tensor, Tensor]
KERNEL_VOLUME = 27


@dataclass(frozen=True)
class Pooling:
    """How fine voxels fold into coarse ones.

    Attributes:
        coarse: M coarse voxels.
        fold: of the N fine rows into the M coarse ones.
        sources: coarse row of each of the 27 neighbours of a fine voxel, (N, 27) int32, M where
            there is none.
        targets: for each coarse row and tap, the fine rows that read it there, (M, 27, width)
            int32, N where there is none.
    """

    coarse: Coordinates
    fold: Fold
    neighbours: Tensor

    @cached_property
    def sources(self) -> Tensor:  # noqa: D102
        parent = torch.cat([self.fold.parent, self.fold.parent.new_tensor([len(self.coarse)])])
        return parent[self.neighbours].to(torch.int32)

    @cached_property
    def targets(self) -> Tensor:  # noqa: D102
        total = len(self.neighbours)
        none = self.neighbours.new_full((1, KERNEL_VOLUME), total)
        # A voxel is read at tap k by its neighbour on the opposite side.
        readers = torch.cat([self.neighbours.flip(1), none])  # (N + 1, 27)
        return readers[self.fold.children].transpose(1, 2)


class Coordinates:
    """Occupied voxels (N, 4) int32 of a batch; rows of one batch element are consecutive.

    Args:
        coords: rows (batch, x, y, z), not negative, no duplicates.
        batch_size: number of batch elements; needed only when trailing ones may be empty.

    Raises:
        ValueError: coords have another shape, or the batch column is not sorted.
    """

    def __init__(self, coords: Tensor, batch_size: int | None = None) -> None:
        if coords.ndim != 2 or coords.shape[1] != 4:
            raise ValueError(f"coordinates must be (N, 4), got {tuple(coords.shape)}")
        self.coords = coords.to(torch.int32)
        batch = coords[:, 0].long()
        if len(batch) > 1 and bool((batch[1:] < batch[:-1]).any()):
            raise ValueError("rows of one batch element must be consecutive and in batch order")
        counts = torch.bincount(batch, minlength=batch_size or 0).tolist()
        self.segments = Segments(counts, coords.device)
        self._windows: dict[tuple[int, int], TokenGroups] = {}
        self._repeated: dict[int, Coordinates] = {}
        self._pooling: dict[int, Pooling] = {}
        self._parent: Coordinates | None = None  # set where these are all children of another set

    def __len__(self) -> int:
        return self.coords.shape[0]

    @property
    def batch_size(self) -> int:
        """Number of batch elements."""
        return self.segments.batch_size

    @cached_property
    def neighbours(self) -> Tensor:
        """Row of each of the 27 neighbours, (N, 27) int32, N where none; taps in x, y, z order."""
        if self._parent is not None:
            return _child_neighbours(self._parent.neighbours)
        total = len(self)
        if total == 0:
            return torch.zeros(0, KERNEL_VOLUME, dtype=torch.int32, device=self.coords.device)
        batch, xyz = self.coords[:, 0].long(), self.coords[:, 1:].long()
        xyz = xyz - xyz.amin(dim=0) + 1  # a margin of one, so that no step wraps into another row
        size = (xyz.amax(dim=0) + 2).tolist()
        key = ((batch * size[0] + xyz[:, 0]) * size[1] + xyz[:, 1]) * size[2] + xyz[:, 2]
        step = torch.tensor([-1, 0, 1], device=key.device)
        offset = (step[:, None, None] * size[1] + step[:, None]) * size[2] + step
        sorted_key, order = key.sort()
        wanted = key[:, None] + offset.reshape(-1)  # (N, 27)
        place = torch.searchsorted(sorted_key, wanted).clamp(max=total - 1)
        found = sorted_key[place] == wanted
        return torch.where(found, order[place], total).to(torch.int32)

    @cached_property
    def pairs(self) -> list[Pair]:
        """Each tap's voxels that have a neighbour there, and those; none for the middle tap."""
        table = self.neighbours.long()
        found = []
        for tap in range(KERNEL_VOLUME):
            neighbour = table[:, tap]
            there = neighbour < (len(self) if tap != KERNEL_VOLUME // 2 else 0)
            rows = there.nonzero()[:, 0]
            found.append((rows, neighbour[rows]))
        return found

    def windows(self, size: int, shift: int) -> TokenGroups:
        """Groups of voxels with equal (batch, (x, y, z) + shift floor-divided by size)."""
        if (size, shift) not in self._windows:
            cell = torch.div(self.coords[:, 1:].long() + shift, size, rounding_mode="floor")
            cell = cell - cell.amin(dim=0) if len(self) else cell
            extent = (cell.amax(dim=0) + 1).tolist() if len(self) else [1, 1, 1]
            batch = self.coords[:, 0].long()
            key = ((batch * extent[0] + cell[:, 0]) * extent[1] + cell[:, 1]) * extent[2]
            self._windows[size, shift] = TokenGroups.from_keys(key + cell[:, 2])
        return self._windows[size, shift]

    def pooling(self, factor: int) -> Pooling:
        """Parents of these voxels on a grid `factor` times coarser, sorted by (b, x, y, z)."""
        if factor not in self._pooling:
            self._pooling[factor] = self._pool(factor)
        return self._pooling[factor]

    def _pool(self, factor: int) -> Pooling:
        cell = torch.div(self.coords[:, 1:].long(), factor, rounding_mode="floor")
        extent = (cell.amax(dim=0) + 1).tolist()
        batch = self.coords[:, 0].long()
        key = ((batch * extent[0] + cell[:, 0]) * extent[1] + cell[:, 1]) * extent[2] + cell[:, 2]
        unique, parent = torch.unique(key, return_inverse=True)
        coarse = torch.stack(
            [
                unique // (extent[0] * extent[1] * extent[2]),
                unique // (extent[1] * extent[2]) % extent[0],
                unique // extent[2] % extent[1],
                unique % extent[2],
            ],
            dim=1,
        )
        within = self.coords[:, 1:].long() % factor
        place = (within[:, 0] * factor + within[:, 1]) * factor + within[:, 2]
        fold = Fold(parent, place, factor**3, len(unique))
        return Pooling(Coordinates(coarse, self.batch_size), fold, self.neighbours)

    @cached_property
    def subdivided(self) -> Coordinates:
        """The 8 children of every voxel, (8N, 4): siblings adjacent, z fastest."""
        bit = torch.tensor([0, 1], dtype=torch.int32, device=self.coords.device)
        child = torch.cartesian_prod(bit, bit, bit)  # (8, 3)
        xyz = self.coords[:, None, 1:] * 2 + child  # (N, 8, 3)
        batch = self.coords[:, None, :1].expand(-1, 8, -1)
        fine = Coordinates(torch.cat([batch, xyz], dim=-1).view(-1, 4), self.batch_size)
        fine._parent = self
        return fine

    def repeated(self, times: int) -> Coordinates:
        """These voxels `times` over, as further batch elements; tables are copied, not rebuilt."""
        if times == 1:
            return self
        if times not in self._repeated:
            copies = self.coords.repeat(times, 1)
            copy = torch.arange(times, device=self.coords.device).repeat_interleave(len(self))
            copies[:, 0] += (copy * self.batch_size).to(torch.int32)
            self._repeated[times] = Coordinates(copies, self.batch_size * times)
        return self._repeated[times]


def _child_neighbours(parent: Tensor) -> Tensor:
    """Neighbours (8N, 27) of the children of voxels with neighbours (N, 27): no search needed."""
    device, total = parent.device, parent.shape[0]
    tap, sibling = child_taps(device)  # (8, 27) each
    above = parent[:, tap.view(-1)].view(total, 8, KERNEL_VOLUME)
    fine = torch.where(above < total, above * 8 + sibling.to(torch.int32), 8 * total)
    return fine.to(torch.int32).view(-1, KERNEL_VOLUME)


def child_taps(device: torch.device) -> tuple[Tensor, Tensor]:
    """For child c and tap k: the parent's tap that holds the neighbour, and which child it is."""
    bit = torch.arange(2, device=device)
    step = torch.arange(-1, 2, device=device)
    child = torch.cartesian_prod(bit, bit, bit)  # (8, 3)
    offset = torch.cartesian_prod(step, step, step)  # (27, 3)
    place = child[:, None] + offset  # (8, 27, 3), -1..2
    cell = torch.div(place, 2, rounding_mode="floor") + 1  # 0..2
    within = place % 2
    tap = (cell[..., 0] * 3 + cell[..., 1]) * 3 + cell[..., 2]
    return tap, (within[..., 0] * 2 + within[..., 1]) * 2 + within[..., 2]


@dataclass(frozen=True)
class SparseTensor:
    """Features (N, C) at the voxels of `at`."""

    at: Coordinates
    feats: Tensor

    def replace(self, feats: Tensor) -> SparseTensor:
        """Other features at the same voxels."""
        return SparseTensor(self.at, feats)

    def split(self) -> list[Tensor]:
        """Features of each batch element."""
        return list(torch.split(self.feats, self.at.segments.counts))

    @classmethod
    def from_coords(cls, coords: Tensor, feats: Tensor) -> SparseTensor:
        """Features (N, C) at coordinate rows (N, 4) = (batch, x, y, z)."""
        if len(coords) != len(feats):
            raise ValueError(f"{len(coords)} coordinate rows but {len(feats)} feature rows")
        return cls(Coordinates(coords), feats)
