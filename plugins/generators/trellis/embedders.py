"""Where a token is and what time it is, as sines and cosines.

Source: facts of the released models: positions are [sin, cos] per axis, times are [cos, sin].
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

MAX_PERIOD = 10000.0
TIMESTEP_DIM = 256


def embed_positions(xyz: Tensor, channels: int) -> Tensor:
    """Absolute position embedding of positions (N, 3), (N, channels).

    Per axis [sin, cos] of channels // 6 frequencies, axes one after the other, zeros at the end
    where 6 does not divide the width.
    """
    num_frequencies = channels // 3 // 2
    order = torch.arange(num_frequencies, dtype=torch.float32, device=xyz.device)
    frequency = 1.0 / MAX_PERIOD ** (order / num_frequencies)
    angle = xyz.float()[..., None] * frequency  # (N, 3, frequencies)
    embedded = torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)
    return nn.functional.pad(embedded, (0, channels - embedded.shape[-1]))


# The reference evaluates exp in float32 with a library whose last bit depends on the processor, and
# at t = 1000 one last bit of a frequency moves the embedding by 6e-5. Rounding the double result
# after this nudge gives the same table everywhere, equal to the reference's within 4e-9.
EXP_NUDGE = 1 + 1.6e-9


@functools.cache
def _timestep_frequencies(half: int) -> Tensor:
    order = torch.arange(half, dtype=torch.float32)
    exponent = -math.log(MAX_PERIOD) * order / half  # rounded to float32, as in the reference
    return (exponent.double().exp() * EXP_NUDGE).float()


def embed_timesteps(t: Tensor, dim: int = TIMESTEP_DIM) -> Tensor:
    """Embedding [cos, sin] of times (B,), (B, dim). The models expect 1000 t."""
    angle = t.float()[:, None] * _timestep_frequencies(dim // 2).to(t.device)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """Times to vectors of the model's width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIMESTEP_DIM, channels), nn.SiLU(), nn.Linear(channels, channels)
        )
        for index in (0, 2):
            nn.init.normal_(self.mlp[index].weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, t: Tensor) -> Tensor:
        """Vectors (B, channels) of times (B,), which run from 0 to 1000."""
        embedded: Tensor = self.mlp(embed_timesteps(t).to(self.mlp[0].weight.dtype))  # type: ignore[arg-type]
        return embedded
