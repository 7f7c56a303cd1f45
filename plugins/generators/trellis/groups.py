"""Which tokens attend to which: groups packed into few padded buckets, built once and reused.

Legend: N tokens, P packed rows (tokens and padding), G groups, L padded length, B batch elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .rows import gather_rows, in_runs, runs_pay


@dataclass(frozen=True)
class Bucket:
    """Groups of similar length, padded to one length."""

    start: int  # first row of this bucket in the packed order
    size: int  # number of groups G
    length: int  # padded length L
    groups: Tensor  # (G,) group numbers
    mask: Tensor | None  # (G, 1, 1, L), True at real tokens; None where nothing is padded


class TokenGroups:
    """A partition of N tokens into groups that attend within themselves."""

    def __init__(self, index: Tensor, inverse: Tensor, buckets: list[Bucket]) -> None:
        self.index = index  # (P,) token of every packed row, N at padding
        self.inverse = inverse  # (N,) packed row of every token
        self.buckets = buckets
        self.padded = len(index) != len(inverse)
        self.identity = not self.padded and bool(
            torch.equal(index, torch.arange(len(index), device=index.device))
        )

    @classmethod
    def from_segments(cls, counts: Sequence[int], device: torch.device) -> TokenGroups:
        """Groups of consecutive tokens, `counts` long."""
        if len(set(counts)) == 1:
            rows = torch.arange(len(counts) * counts[0], device=device)
            number = torch.arange(len(counts), device=device)
            return cls(rows, rows, [Bucket(0, len(counts), counts[0], number, None)])
        number = torch.arange(len(counts), device=device)
        return cls.from_keys(number.repeat_interleave(torch.tensor(counts, device=device)))

    @classmethod
    def from_keys(cls, keys: Tensor) -> TokenGroups:
        """Groups of tokens with equal key, keys (N,) int64; groups are numbered by rising key."""
        total, device = len(keys), keys.device
        _, group, count = torch.unique(keys, return_inverse=True, return_counts=True)
        padded_length = _padded_lengths(count)  # (groups,)
        # Packed order: buckets by rising length, groups in order, tokens in order.
        by_bucket = padded_length.argsort(stable=True)
        space = torch.zeros_like(count)
        space[by_bucket] = padded_length[by_bucket].cumsum(0) - padded_length[by_bucket]
        order = group.argsort(stable=True)
        first = count.cumsum(0) - count
        inverse = torch.empty_like(group)
        rank = torch.arange(total, device=device) - first[group[order]]
        inverse[order] = space[group[order]] + rank
        index = torch.full((int(padded_length.sum()),), total, device=device)
        index[inverse] = torch.arange(total, device=device)

        buckets, start = [], 0
        for length in torch.unique(padded_length).tolist():
            groups = (padded_length == length).nonzero()[:, 0]
            rows = index[start : start + len(groups) * length].view(len(groups), length)
            real = (rows < total)[:, None, None]
            mask = None if bool(real.all()) else real
            buckets.append(Bucket(start, len(groups), length, groups, mask))
            start += len(groups) * length
        return cls(index, inverse, buckets)

    def pack(self, x: Tensor) -> Tensor:
        """Tokens (N, ...) in packed order (P, ...), zeros at padding."""
        return x if self.identity else gather_rows(x, self.index, self.inverse, self.padded, False)

    def unpack(self, x: Tensor) -> Tensor:
        """Packed rows (P, ...) back in token order (N, ...)."""
        return x if self.identity else gather_rows(x, self.inverse, self.index, False, self.padded)


def _padded_lengths(count: Tensor) -> Tensor:
    """Group lengths rounded up so that few distinct ones remain and little is padded."""
    if len(torch.unique(count)) <= 1:
        return count
    # Eight steps per octave waste at most an eighth of a row.
    octave = torch.floor(torch.log2(count.float())).clamp(min=3)
    step = torch.pow(2.0, octave - 2)
    return (torch.ceil(count / step) * step).long()


class Segments:
    """Runs of consecutive rows, one run per batch element."""

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self.counts = list(counts)
        self.device = device
        self._first: dict[int, Segments] = {}

    @property
    def batch_size(self) -> int:
        """Number of runs."""
        return len(self.counts)

    @cached_property
    def uniform(self) -> bool:
        """Whether all batch elements have the same number of rows."""
        return len(set(self.counts)) == 1

    @cached_property
    def batch_index(self) -> Tensor:
        """Batch element of every row, (N,)."""
        counts = torch.tensor(self.counts, device=self.device)
        return torch.arange(len(self.counts), device=self.device).repeat_interleave(counts)

    @cached_property
    def _rows(self) -> Tensor:
        """Row numbers of every batch element, (B, longest), N where there is none."""
        total, longest = sum(self.counts), max(self.counts, default=0)
        step = torch.arange(longest, device=self.device)
        counts = torch.tensor(self.counts, device=self.device)
        start = counts.cumsum(0) - counts
        return torch.where(step < counts[:, None], start[:, None] + step, total)

    def first(self, number: int) -> Segments:
        """The runs of the first `number` batch elements."""
        if number > self.batch_size:
            raise ValueError(f"a context of {number} for a batch of {self.batch_size}")
        if number == self.batch_size:
            return self
        if number not in self._first:
            self._first[number] = Segments(self.counts[:number], self.device)
        return self._first[number]

    def spread(self, x: Tensor) -> Tensor:
        """One row per batch element (B, C) handed to each of its rows, (N, C)."""
        if self.uniform:
            return x.unsqueeze(1).expand(-1, self.counts[0], -1).reshape(-1, x.shape[-1])
        return gather_rows(x, self.batch_index, self._rows, False, not self.uniform)

    def each_row(self, function: Callable[..., Tensor], values: Tensor, *x: Tensor) -> Tensor:
        """function(values, *x) of rows x (N, ...) and what `values` (B, C) has for each of them.

        The function must treat every row on its own; see `rows.in_runs`.
        """
        if not runs_pay(values) or not x[0].shape[0]:
            return function(self.spread(values), *x)
        return in_runs(
            lambda element, rows: function(values[element], *(rest[rows] for rest in x)),
            self.counts,
        )

    @cached_property
    def groups(self) -> TokenGroups:
        """The groups of full attention: every batch element attends within itself."""
        return TokenGroups.from_segments(self.counts, self.device)
