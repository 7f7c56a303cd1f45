"""Row movements whose gradients are row movements: nothing is scattered, nothing is summed twice.

Legend: N input rows, K output rows.
"""

from __future__ import annotations

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
