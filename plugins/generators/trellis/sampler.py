"""TRELLIS's own sampler: Euler steps from noise to data, guided inside an interval of times.

Times here are TRELLIS's: t = 1 is noise and t = 0 is data, the reverse of the rest of modalign.
The path is x_t = (1 - t) x_0 + (s + (1 - s) t) noise with a small s ("sigma_min"), and a model
predicts its slope v = (1 - s) noise - x_0. Nothing outside this plugin sees these times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
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


@dataclass(frozen=True)
class Start:
    """Data to sample from, in place of noise alone.

    Attributes:
        data: x_0, of the shape of the noise.
        strength: how much of the schedule is sampled, from 0, which returns the data, to 1, which
            starts from noise.
        keep: where the data stays, bool, broadcast over `data`; at each time it is there what the
            path from the same noise to the data holds.

    Raises:
        ValueError: `strength` is not within 0..1.
    """

    data: Tensor
    strength: float = 1.0
    keep: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength must be within 0..1, got {self.strength}")

    def noised(self, noise: Tensor, t: float, sigma_min: float) -> Tensor:
        """x_t of the path between the data and `noise`."""
        return (1 - t) * self.data + (sigma_min + (1 - sigma_min) * t) * noise

    def keeping(self, x: Tensor, kept: Tensor) -> Tensor:
        """`kept` where the data stays, x elsewhere."""
        return x if self.keep is None else torch.where(self.keep, kept, x)


def times(steps: int, rescale_t: float, strength: float = 1.0) -> list[float]:
    """The steps + 1 times from 1 to 0; rescale_t > 1 spends more of them near the noise.

    With a `strength` below 1 those of the last part of the steps, however they fall.
    """
    even = [1 - step / steps for step in range(steps + 1)]
    even = even if strength == 1 else [strength, *(t for t in even if t < strength)]
    return [rescale_t * t / (1 + (rescale_t - 1) * t) for t in even]


def schedule(settings: SamplerSettings, start: Start | None = None) -> list[float]:
    """The times that a sampling visits."""
    strength = 1.0 if start is None else start.strength
    return times(settings.steps, settings.rescale_t, strength)


def euler_steps(
    denoiser: Denoiser, noise: Tensor, settings: SamplerSettings, start: Start | None = None
) -> Iterator[Step]:
    """The steps of one sampling, as they are made; the last one's `x` is the sample.

    With a `start` of strength 0 there is no step: its data is the sample.
    """
    x, s = noise, settings.sigma_min
    visited = schedule(settings, start)
    if start is not None and start.strength < 1:
        x = start.noised(noise, visited[0], s)
    low, high = settings.cfg_interval
    for t, t_next in zip(visited, visited[1:], strict=False):
        guided = settings.cfg_strength != 0 and low <= t <= high
        v, v_without = denoiser(x, t, guided)
        if guided:
            assert v_without is not None
            v = (1 + settings.cfg_strength) * v - settings.cfg_strength * v_without
        x_0 = (1 - s) * x - (s + (1 - s) * t) * v
        x = x - (t - t_next) * v
        if start is not None:
            kept = start.data if t_next == 0 else start.noised(noise, t_next, s)
            x = start.keeping(x, kept)
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


def mixed(weights: Sequence[float]) -> Callable[[Sequence[Denoiser]], Denoiser]:
    """A weighted mean of the conditional velocities, for as many conditions as there are weights.

    A condition of weight 0 is not asked, and one of weight 1 alone is plain sampling.

    Raises:
        ValueError: the weights do not sum to 1, one is negative, or conditions are more or fewer.
    """
    if min(weights, default=-1.0) < 0 or not abs(sum(weights) - 1) <= 1e-6:
        raise ValueError(f"weights must not be negative and must sum to 1, got {list(weights)}")

    def combine(denoisers: Sequence[Denoiser]) -> Denoiser:
        if len(denoisers) != len(weights):
            raise ValueError(f"{len(weights)} weights for {len(denoisers)} conditions")
        asked = [(w, each) for w, each in zip(weights, denoisers, strict=True) if w]

        def denoise(x: Tensor, t: float, guided: bool) -> tuple[Tensor, Tensor | None]:
            (weight, first), *others = asked
            v, without = first(x, t, guided)
            total = sum((w * other(x, t, False)[0] for w, other in others), weight * v)
            return total, without

        return denoise

    return combine
