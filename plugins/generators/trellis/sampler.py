"""TRELLIS's own sampler: Euler steps from noise to data, guided inside an interval of times.

Times here are TRELLIS's: t = 1 is noise and t = 0 is data, the reverse of the rest of modalign.
The path is x_t = (1 - t) x_0 + (s + (1 - s) t) noise with a small s ("sigma_min"), and a model
predicts its slope v = (1 - s) noise - x_0. Nothing outside this plugin sees these times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

from torch import Tensor

from .config import SamplerSettings

TIMESTEP_SCALE = 1000  # models are called with 1000 t

Denoiser = Callable[[Tensor, float, bool], tuple[Tensor, Tensor | None]]
"""Called as denoiser(x, t, guided): the conditional velocity, and the unconditional if guided."""


@dataclass(frozen=True)
class Step:
    """One Euler step: where it led, and what data it pointed at."""

    x: Tensor
    x_0: Tensor


def times(steps: int, rescale_t: float) -> list[float]:
    """The steps + 1 times from 1 to 0; rescale_t > 1 spends more of them near the noise."""
    even = [1 - step / steps for step in range(steps + 1)]
    return [rescale_t * t / (1 + (rescale_t - 1) * t) for t in even]


def euler_steps(denoiser: Denoiser, noise: Tensor, settings: SamplerSettings) -> Iterator[Step]:
    """The steps of one sampling, as they are made; the last one's `x` is the sample."""
    x, s = noise, settings.sigma_min
    schedule = times(settings.steps, settings.rescale_t)
    low, high = settings.cfg_interval
    for t, t_next in zip(schedule, schedule[1:], strict=False):
        guided = settings.cfg_strength != 0 and low <= t <= high
        v, v_without = denoiser(x, t, guided)
        if guided:
            assert v_without is not None
            v = (1 + settings.cfg_strength) * v - settings.cfg_strength * v_without
        x_0 = (1 - s) * x - (s + (1 - s) * t) * v
        x = x - (t - t_next) * v
        yield Step(x, x_0)


def in_turn(denoisers: Sequence[Denoiser]) -> Denoiser:
    """A denoiser per condition, one after the other, step by step."""
    turns = cycle(denoisers)
    return lambda x, t, guided: next(turns)(x, t, guided)


def averaged(denoisers: Sequence[Denoiser]) -> Denoiser:
    """The mean of the conditional velocities of several conditions."""

    def denoise(x: Tensor, t: float, guided: bool) -> tuple[Tensor, Tensor | None]:
        first, without = denoisers[0](x, t, guided)
        total = sum((other(x, t, False)[0] for other in denoisers[1:]), first)
        return total / len(denoisers), without

    return denoise
