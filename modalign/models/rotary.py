"""Axial rotary positions: tokens with a place turn by row and column, the others stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modalign.tokens import TokenStreamSpec

THETA = 10000.0


@dataclass(frozen=True)
class Extrapolation:
    """How a network reads grids larger than those it was trained on; the defaults change nothing.

    `linear` divides the rotary frequencies, `ntk` multiplies their base, and with `base_tokens`
    self-attention logits over N tokens are scaled by sqrt(log N / log base_tokens).
    Source: Lumina-Next (2406.18583), section 3; LuminaNextDiT2DModel takes the same three numbers.
    """

    linear: float = 1.0
    ntk: float = 1.0
    base_tokens: int | None = None


def rotary_table(
    stream: TokenStreamSpec,
    head_dim: int,
    extrapolation: Extrapolation = Extrapolation(),  # noqa: B008
    device: torch.device | None = None,
) -> Tensor:
    """Cosine and sine (N, head_dim / 2, 2) of every token's rotation, float32.

    Pairs alternate: even ones turn with the row, odd ones with the column. Groups without a place
    get the identity. Computed anew on each call (microseconds), so that a network holds no buffer
    that a checkpoint, a meta device or a cast could spoil.
    Source: facts of the released GAP3D network, section 1.2.
    """
    exponents = torch.arange(0, head_dim, 4, dtype=torch.float32, device=device) / head_dim
    frequencies = 1.0 / (THETA * extrapolation.ntk) ** exponents / extrapolation.linear
    angles = []
    for group in stream.groups:
        if not group.has_place:
            angles.append(frequencies.new_zeros(group.num_tokens, head_dim // 2))
            continue
        rows, columns = group.shape
        row = torch.arange(rows, dtype=torch.float32, device=device)[:, None] * frequencies
        column = torch.arange(columns, dtype=torch.float32, device=device)[:, None] * frequencies
        grid = torch.stack(
            (row[:, None].expand(rows, columns, -1), column.expand(rows, columns, -1)), dim=-1
        )  # (rows, columns, head_dim / 4, axis)
        angles.append(grid.reshape(group.num_tokens, head_dim // 2))
    angle = torch.cat(angles)  # (N, head_dim / 2)
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """`x` (B, N, heads, head_dim) with adjacent pairs turned by `table`, computed in float32.

    The complex product is the same arithmetic in one pass (8 times faster than four real products
    on a CPU), but compilers cannot fuse it: they get the real form.
    """
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)  # (B, N, heads, head_dim / 2, 2)
    if torch.compiler.is_compiling():
        cosine, sine = table[:, None].unbind(-1)
        first, second = pairs.unbind(-1)
        turned = torch.stack(
            (first * cosine - second * sine, first * sine + second * cosine), dim=-1
        )
    else:
        turned = torch.view_as_real(
            torch.view_as_complex(pairs) * torch.view_as_complex(table)[:, None]
        )
    return turned.flatten(-2).to(x.dtype)
