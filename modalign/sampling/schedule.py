"""Noise levels 1 - t, from 1 (noise) to 0 (data): shift, sampling grid, training draws."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from modalign.recipe import FlowConfig

Level = TypeVar("Level", float, Tensor)
CLOCK = 1000  # the released schedule counts noise in thousandths


def shift_level(level: Level, shift: float) -> Level:
    """s u / (1 + (s - 1) u): more time at high noise for s > 1. Ends stay, order stays.

    Source: RAE (2510.11690), with s = sqrt(values / 4096); used alike in training and sampling.
    """
    return shift * level / (1 + (shift - 1) * level)


def noise_levels(steps: int, shift: float = 1.0, strength: float = 1.0) -> list[float]:
    """`steps + 1` levels from 1 to 0, evenly spaced before the shift.

    With a `strength` below 1 only those of the last part of the steps, however they fall.
    """
    even = [1 - step / steps for step in range(steps)]
    if strength < 1:
        even = [strength, *(level for level in even if level < strength)] if strength else []
    return [shift_level(level, shift) for level in even] + [0.0]


def network_time(level: float, integer: bool = False) -> float:
    """The time t = 1 - level that a network is told.

    With `integer`, thousandths of noise are truncated as the released sampler does, whose levels
    are float32: 0.9 is then 900, although the float64 product may lie below.
    """
    if not integer:
        return 1 - level
    return 1 - int(torch.tensor(level, dtype=torch.float32) * CLOCK) / CLOCK


def training_times(uniform: Tensor, flow: FlowConfig) -> Tensor:
    """Times t (B,), float64, in [0, 1), for numbers in [0, 1): on the grid of `flow`, shifted."""
    if flow.grid is None:
        level = 1 - uniform.double()
    else:
        level = 1 - (uniform * flow.grid).floor().double() / flow.grid
    return 1 - shift_level(level, flow.shift)


def draw_times(flow: FlowConfig, batch: int, generator: torch.Generator | None = None) -> Tensor:
    """Random training times (B,), float64, on the generator's device (CPU without one)."""
    device = None if generator is None else generator.device
    if flow.time == "uniform":
        uniform = torch.rand(batch, generator=generator, device=device)
    else:
        normal = torch.randn(batch, generator=generator, device=device)
        uniform = (flow.logit_std * normal).sigmoid()
    # A sigmoid may round to 1, which would be t = 1: no noise and nothing to learn.
    return training_times(uniform.clamp(max=1 - 2**-24), flow)
