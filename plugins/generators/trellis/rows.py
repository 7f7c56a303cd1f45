"""Row movements whose gradients are row movements: nothing is scattered, nothing is summed twice.

Legend: N input rows, K output rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def select_rows(x: Tensor, index: Tensor, padded: bool) -> Tensor:
    """Rows of x (N, ...) by index; where padded, an index of N reads a row of zeros."""
    if padded:
        x = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
    return x.index_select(0, index)


class _GatherRows(torch.autograd.Function):
    """A gather whose gradient is a gather too: scattered additions are slow on CPU."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, index: Tensor, inverse: Tensor, padded: tuple[bool, bool]
    ) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.inverse_padded = padded[1]  # type: ignore[attr-defined]
        return select_rows(x, index, padded[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors  # type: ignore[attr-defined]
        rows = select_rows(grad, inverse.reshape(-1), ctx.inverse_padded)  # type: ignore[attr-defined]
        if inverse.ndim == 2:
            rows = rows.view(*inverse.shape, *grad.shape[1:]).sum(dim=1)
        return rows, None, None, None


def gather_rows(
    x: Tensor, index: Tensor, inverse: Tensor, index_padded: bool, inverse_padded: bool
) -> Tensor:
    """Rows `index` (K,) of x (N, ...), zeros where index is N.

    Args:
        inverse: for every row of x the output rows it went to, (N,) or (N, m); K where none.
        index_padded: whether `index` holds an N.
        inverse_padded: whether `inverse` holds a K.
    """
    result: Tensor = _GatherRows.apply(x, index, inverse, (index_padded, inverse_padded))
    return result


RUN = 512  # rows whose intermediate results stay in a processor's cache


def runs_pay(x: Tensor) -> bool:
    """Whether `in_runs` is worth it: on a processor, where no gradient keeps what is computed."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def in_runs(function: Callable[[int, slice], Tensor], counts: Sequence[int]) -> Tensor:
    """What function(segment, rows) returns for short runs of rows, put together.

    Segments follow each other and are `counts` long; no run crosses from one into the next. For
    what treats every row on its own: wide intermediate results then never leave the cache.
    """
    out: Tensor | None = None
    start = 0
    for segment, count in enumerate(counts):
        for first in range(start, start + count, RUN):
            rows = slice(first, min(first + RUN, start + count))
            part = function(segment, rows)
            if out is None:
                out = part.new_empty(sum(counts), *part.shape[1:])
            out[rows] = part
        start += count
    assert out is not None
    return out


def each_row(function: Callable[..., Tensor], *x: Tensor) -> Tensor:
    """function(*x) of rows x (N, ...), for a function that treats every row on its own."""
    number = len(x[0])
    if number <= RUN or not runs_pay(x[0]):
        return function(*x)
    return in_runs(lambda _, rows: function(*(values[rows] for values in x)), [number])


class Fold:
    """Many fine rows to few coarse ones, and back.

    Args:
        parent: coarse row of every fine row, (N,) int64.
        place: place of every fine row among its siblings, (N,), each different, below `width`.
        width: most siblings possible.
        num_coarse: M, the number of coarse rows.
    """

    def __init__(self, parent: Tensor, place: Tensor, width: int, num_coarse: int) -> None:
        self.parent = parent
        self.slot = parent * width + place  # (N,) in `children`, flattened
        total = len(parent)
        children = torch.full((num_coarse * width,), total, device=parent.device)
        children[self.slot] = torch.arange(total, device=parent.device)
        self.children = children.view(num_coarse, width)  # fine rows, N where there is none
        self.padded = children.numel() != total

    @cached_property
    def count(self) -> Tensor:
        """Number of fine rows of every coarse row, (M, 1)."""
        return (self.children < len(self.parent)).sum(dim=1, keepdim=True)

    def sum(self, x: Tensor) -> Tensor:
        """Sums (M, C) over the fine rows x (N, C) of every coarse row."""
        rows = gather_rows(x, self.children.view(-1), self.slot, self.padded, False)
        return rows.view(*self.children.shape, x.shape[1]).sum(dim=1)

    def spread(self, x: Tensor) -> Tensor:
        """The coarse row x (M, C) of every fine row, (N, C)."""
        return gather_rows(x, self.parent, self.children, False, self.padded)
