"""Solvers of dx/dt = v(x, t) over streams, along a grid of noise levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from modalign.tokens import TokenStream

Velocity = Callable[[TokenStream, float], TokenStream]
"""Called as `velocity(x, level)`; returns dx/dt, from noise to data."""

Report = Callable[[int], None]
"""Called with the number of steps done."""


def euler(
    velocity: Velocity, x: TokenStream, levels: Sequence[float], report: Report | None = None
) -> TokenStream:
    """The stream at the last of `levels`, starting from `x` at the first. One call per step."""
    for step, (level, following) in enumerate(pairwise(levels), start=1):
        x = _advance(x, velocity(x, level), level - following)
        if report is not None:
            report(step)
    return x


def heun(
    velocity: Velocity, x: TokenStream, levels: Sequence[float], report: Report | None = None
) -> TokenStream:
    """As `euler`, with the mean of the velocities at both ends of a step: second order.

    Two calls per step, one in the last: networks are not trained at level 0. Source: EDM
    (2206.00364), algorithm 1.
    """
    for step, (level, following) in enumerate(pairwise(levels), start=1):
        first = velocity(x, level)
        reached = _advance(x, first, level - following)
        if following > 0:
            second = velocity(reached, following)
            mean = {name: (first[name] + second[name]) / 2 for name in first}
            reached = _advance(x, mean, level - following)
        x = reached
        if report is not None:
            report(step)
    return x


def _advance(x: TokenStream, velocity: TokenStream, time: float) -> TokenStream:
    return {name: tokens + time * velocity[name] for name, tokens in x.items()}


SOLVERS = {"euler": euler, "heun": heun}
