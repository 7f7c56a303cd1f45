"""Floating-point operations of `TokenStreamDiT`, counted from its sizes: two per multiply-add."""

from __future__ import annotations

from modalign.models.dit import MAX_MODULATION_DIM, NUM_TIME_FREQUENCIES
from modalign.recipe import DiTConfig
from modalign.tokens import TokenStreamSpec


def forward_flops(
    config: DiTConfig, stream: TokenStreamSpec, condition_dim: int, num_condition: int
) -> int:
    """Operations of one prediction for one sample, from a condition (S, C) as it is.

    Matrix products alone, as is the custom: norms, rotation and activations are left out.

    Args:
        config: size of the network.
        stream: layout of what it predicts.
        condition_dim: C.
        num_condition: S.
    """
    tokens, dim, modulation = (
        stream.num_tokens,
        config.hidden_size,
        min(config.hidden_size, MAX_MODULATION_DIM),
    )
    kv_dim = dim // config.num_heads * (config.num_kv_heads or config.num_heads)
    inner = config.inner_dim
    # To queries twice and out of attention once; keys and values; the feed-forward's three.
    projections = tokens * (3 * dim * dim + 2 * dim * kv_dim + 3 * dim * inner)
    attention = 2 * tokens * (tokens + num_condition) * dim
    context = 2 * num_condition * dim * kv_dim
    block = projections + attention + context + modulation * 4 * dim
    condition = num_condition * (condition_dim * dim + dim * dim) + dim * modulation
    time = modulation * (2 * NUM_TIME_FREQUENCIES + modulation)
    ends = 2 * sum(group.num_tokens * group.dim for group in stream.groups) * dim
    return 2 * (config.depth * block + condition + time + ends + modulation * dim)


def training_flops(
    config: DiTConfig, stream: TokenStreamSpec, condition_dim: int, num_condition: int
) -> int:
    """Operations of one training step for one sample: the backward pass takes two forward ones.

    What recomputation adds is not counted, so that model FLOP utilisation does not reward it.
    """
    return 3 * forward_flops(config, stream, condition_dim, num_condition)
