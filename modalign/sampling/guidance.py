"""Classifier-free guidance: the velocity of a head under a condition and without one."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from modalign.recipe import FlowConfig, SamplerConfig
from modalign.sampling.schedule import network_time
from modalign.sampling.solvers import Velocity
from modalign.specs import Head
from modalign.tokens import TokenStream


@runtime_checkable
class PreparesCondition(Protocol):
    """A head that computes once what depends on the condition alone.

    `head(x_t, t, prepared)` then equals `head(x_t, t, condition)`, and slices select samples.
    """

    def prepare_condition(self, condition: Tensor, mask: Tensor | None = None) -> Any:
        """What `head` takes in place of `condition`."""
        ...


def guided_velocity(
    head: Head,
    condition: Tensor,
    flow: FlowConfig,
    sampler: SamplerConfig,
    mask: Tensor | None = None,
) -> Velocity:
    """The velocity v_null + g (v_cond - v_null) of `head`, as a function of stream and level.

    The null condition is zeros, under the same `mask` (B, S) of real positions. Both halves run as
    one batch [null; cond], and the null half is left out where guidance is off: g = 1, or a level
    outside the interval. A head that predicts data gives the velocity (x_1 - x_t) / (1 - t); levels
    on a sampling grid are never 0.
    """
    batch, on = len(condition), sampler.guidance != 1
    low, high = sampler.guidance_interval
    asked: Any = torch.cat((torch.zeros_like(condition), condition)) if on else condition
    masks = torch.cat((mask, mask)) if on and mask is not None else mask
    if isinstance(head, PreparesCondition):
        asked = (
            head.prepare_condition(asked) if masks is None else head.prepare_condition(asked, masks)
        )
        masks = None

    def predict(x: TokenStream, level: float, condition: Any, mask: Tensor | None) -> TokenStream:
        count = len(next(iter(x.values())))
        time = network_time(level, sampler.integer_time)
        device = _device(x)
        t = torch.full((count,), time, dtype=time_dtype(device), device=device)
        out = head(x, t, condition) if mask is None else head(x, t, condition, mask)
        if flow.prediction == "velocity":
            return {name: tokens.to(x[name].dtype) for name, tokens in out.items()}
        return {name: (tokens.to(x[name].dtype) - x[name]) / level for name, tokens in out.items()}

    def velocity(x: TokenStream, level: float) -> TokenStream:
        if not on:
            return predict(x, level, asked, masks)
        if not low <= level <= high:
            return predict(x, level, asked[batch:], None if masks is None else masks[batch:])
        both = predict({name: torch.cat((v, v)) for name, v in x.items()}, level, asked, masks)
        guided = {}
        for name, tokens in both.items():
            null, cond = tokens[:batch], tokens[batch:]
            guided[name] = null + sampler.guidance * (cond - null)
        return guided

    return velocity


def _device(x: TokenStream) -> torch.device:
    return next(iter(x.values())).device


def time_dtype(device: torch.device) -> torch.dtype:
    """float64, in which a network is told its times; float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
