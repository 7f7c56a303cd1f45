"""Sampling a stream: solvers, guidance and time shift, over any callable (x_t, t, condition)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from modalign.recipe import FlowConfig, SamplerConfig
from modalign.sampling.guidance import guided_velocity
from modalign.sampling.schedule import noise_levels
from modalign.sampling.solvers import SOLVERS, Report
from modalign.sampling.start import Start
from modalign.specs import Head
from modalign.tokens import TokenStream, TokenStreamSpec

__all__ = ["Start", "draw_noise", "sample"]


def draw_noise(spec: TokenStreamSpec, generators: Sequence[torch.Generator]) -> TokenStream:
    """Normal noise (B, K, D), float32, one generator per sample.

    Each draws its sample's groups in the order of `spec`, so a sample depends neither on the batch
    around it nor, with generators on the CPU, on the device it is used on.
    """
    samples = [
        {
            group.name: torch.randn(
                group.num_tokens, group.dim, generator=generator, device=generator.device
            )
            for group in spec.groups
        }
        for generator in generators
    ]
    return {name: torch.stack([drawn[name] for drawn in samples]) for name in spec.names}


def sample(
    head: Head,
    spec: TokenStreamSpec,
    condition: Tensor,
    *,
    flow: FlowConfig = FlowConfig(),  # noqa: B008
    sampler: SamplerConfig = SamplerConfig(),  # noqa: B008
    generators: Sequence[torch.Generator] = (),
    noise: TokenStream | None = None,
    progress: Report | None = None,
    mask: Tensor | None = None,
    start: Start | None = None,
) -> TokenStream:
    """A stream for each condition (B, S, C), on its device and in its dtype.

    Starts from `noise`, or from what `generators` (one per sample) draw. Integrates in float32 at
    least. Does not project; `sampler.project` is for whoever knows the space.

    Args:
        head: called as `head(x_t, t, condition)`, 2 B samples at once under guidance.
        spec: layout of the stream.
        condition: hidden states that the head reads.
        flow: what the head predicts, and the time shift it was trained with.
        sampler: solver, steps and guidance.
        generators: one per sample, unless `noise` is given.
        noise: the stream at t = 0.
        progress: called with the number of steps done.
        mask: (B, S), 1 at the condition's real positions; None if all are. The head then gets it.
        start: a stream to begin from, at the time that its strength says.

    Raises:
        ValueError: the number of generators is not B, or `noise` or `start` has another layout.
    """
    if noise is None:
        if len(generators) != len(condition):
            raise ValueError(
                f"a batch of {len(condition)} needs one generator per sample, got {len(generators)}"
            )
        noise = draw_noise(spec, generators)
    spec.check(noise)
    dtype = torch.promote_types(condition.dtype, torch.float32)
    x = {name: tokens.to(condition.device, dtype) for name, tokens in noise.items()}
    velocity = guided_velocity(head, condition, flow, sampler, mask)
    solve = SOLVERS[sampler.solver]
    if start is None:
        x = solve(velocity, x, noise_levels(sampler.steps, flow.shift), progress)
        return {name: tokens.to(condition.dtype) for name, tokens in x.items()}
    start, noise = start.for_batch(len(condition), spec), x
    levels = noise_levels(sampler.steps, flow.shift, start.strength)
    if start.strength < 1:
        x = start.noised(noise, levels[0])
    for step, (level, following) in enumerate(pairwise(levels), start=1):
        x = solve(velocity, x, (level, following))
        x = start.keeping(x, start.noised(noise, following))
        if progress is not None:
            progress(step)
    return {name: tokens.to(condition.dtype) for name, tokens in x.items()}
