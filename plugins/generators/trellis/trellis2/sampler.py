"""TRELLIS.2's sampler: TRELLIS's path and Euler steps, with another guidance.

The path is x_t = (1 - t) x_0 + (s + (1 - s) t) noise, t = 1 noise and t = 0 data, as in TRELLIS.
Two velocities of one point are combined as g v + (1 - g) v_without, g one more than TRELLIS's
strength; then the data that the result points at is scaled to the spread of what v alone points at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from modalign_plugins.generators.trellis.sampler import times
from torch import Tensor

from .config import SamplerSettings

Denoiser = Callable[[Tensor, float, bool], tuple[Tensor, Tensor | None]]
"""Called as denoiser(x, t, guided): the conditional velocity, and the unconditional if guided."""


def euler_steps(denoiser: Denoiser, noise: Tensor, settings: SamplerSettings) -> Iterator[Tensor]:
    """The points of one sampling after each step; the last one is the sample.

    All of `noise` is one sample, whatever its shape: a spread is taken over all its numbers.
    """
    x = noise
    schedule = times(settings.steps, settings.rescale_t)
    low, high = settings.guidance_interval
    for t, t_next in zip(schedule, schedule[1:], strict=False):
        guided = settings.guidance_strength != 1 and low <= t <= high
        v, v_without = denoiser(x, t, guided)
        if guided:
            assert v_without is not None
            v = guided_velocity(x, t, v, v_without, settings)
        x = x - (t - t_next) * v
        yield x


def guided_velocity(
    x: Tensor, t: float, v: Tensor, v_without: Tensor, settings: SamplerSettings
) -> Tensor:
    """The velocity at x and t > 0 that guidance makes of two, all of one shape, one sample.

    With share r of rescaling, x_0 becomes (r std(x_0 of v) / std(x_0) + 1 - r) x_0.
    """
    g, share = settings.guidance_strength, settings.guidance_rescale
    guided = g * v + (1 - g) * v_without
    if share == 0:
        return guided
    x_0 = data_of(x, t, guided, settings.sigma_min)
    spread = x_0.std()
    if spread == 0:  # nothing to scale: no factor changes a constant's spread
        return guided
    ratio = data_of(x, t, v, settings.sigma_min).std() / spread
    return velocity_to(x, t, (share * ratio + 1 - share) * x_0, settings.sigma_min)


def data_of(x: Tensor, t: float, v: Tensor, s: float) -> Tensor:
    """x_0 that velocity v at x and t points at: (1 - s) x - (s + (1 - s) t) v."""
    return (1 - s) * x - (s + (1 - s) * t) * v


def velocity_to(x: Tensor, t: float, x_0: Tensor, s: float) -> Tensor:
    """The velocity at x and t that points at x_0: the inverse of `data_of`."""
    return ((1 - s) * x - x_0) / (s + (1 - s) * t)
