"""What every adapter of a frozen decoder does with soft tokens and the states it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modalign import VLMOutput


def check_soft_tokens(soft_tokens: Tensor, dim: int) -> None:
    """Accept soft tokens (1, S, C) of width C = `dim`.

    Raises:
        ValueError: they have another shape.
    """
    if soft_tokens.ndim != 3 or soft_tokens.shape[::2] != (1, dim):
        raise ValueError(f"soft tokens must be (1, S, {dim}), got {tuple(soft_tokens.shape)}")


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Accept `layers` between 0 and `num_layers`.

    Raises:
        ValueError: there is none, or one is out of range.
    """
    if not layers or min(layers) < 0 or max(layers) > num_layers:
        raise ValueError(f"layers must be some of 0 to {num_layers}, got {tuple(layers)}")


def stacked(output: Any, layers: Sequence[int]) -> Tensor:
    """The states (B, L, S, C) of `layers` in a transformers output with hidden states (B, S, C).

    Transformers counts as we do: 0 enters the first layer. Its last one need not be normed.
    """
    states = (*output.hidden_states[:-1], output.last_hidden_state)
    return torch.stack([states[layer] for layer in layers], dim=1)


def after_prompts(prompts: Tensor, mask: Tensor, soft: Tensor) -> VLMOutput:
    """Prompt states (B, L, P, C), zeroed where `mask` (B, P) is 0, then soft ones (B, L, S, C)."""
    kept = prompts.detach() * mask[:, None, :, None].to(prompts.dtype)
    real = mask.new_ones(len(mask), soft.shape[2])
    return VLMOutput(torch.cat([kept, soft], dim=2), mask=torch.cat([mask, real], dim=1))
