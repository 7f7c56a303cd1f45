"""The formula against PyTorch's own counter, which sees every matrix product that runs."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modalign import installed
from modalign.models.dit import NUM_TIME_FREQUENCIES, TokenStreamDiT
from modalign.models.flops import forward_flops, training_flops
from modalign.recipe import DiTConfig
from modalign.tokens import TokenGroup, TokenStreamSpec

STREAM = TokenStreamSpec(
    space="test",
    groups=(
        TokenGroup(name="cls", shape=(1,), dim=6),
        TokenGroup(name="registers", shape=(4,), dim=10),
        TokenGroup(name="patches", shape=(3, 5), dim=6),
    ),
)
S, C = 7, 20
CONFIGS = [
    DiTConfig(hidden_size=24, depth=2, num_heads=3, multiple_of=16),
    DiTConfig(hidden_size=32, depth=1, num_heads=4, num_kv_heads=2, ffn_dim_multiplier=1.3),
    # Wider than the modulation, which then keeps its released width.
    DiTConfig(hidden_size=1040, depth=1, num_heads=10, multiple_of=32),
]


def count(config: DiTConfig, *, backward: bool) -> int:
    batch = 2
    head = TokenStreamDiT(STREAM, config, C)
    noise = {g.name: torch.randn(batch, g.num_tokens, g.dim) for g in STREAM.groups}
    condition = torch.randn(batch, S, C, requires_grad=True)
    # The plain form of attention runs no product twice on its way back.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        predicted = head(noise, torch.rand(batch), condition)
        if backward:
            sum(tokens.square().mean() for tokens in predicted.values()).backward()
    total, rest = divmod(counter.get_total_flops(), batch)
    assert not rest
    return total


@pytest.mark.parametrize("config", CONFIGS)
def test_a_prediction_takes_the_operations_of_the_formula(config: DiTConfig) -> None:
    assert count(config, backward=False) == forward_flops(config, STREAM, C, S)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_training_step_takes_three_predictions_less_what_needs_no_gradient(
    config: DiTConfig,
) -> None:
    dim = config.hidden_size
    tokens = sum(group.num_tokens * group.dim for group in STREAM.groups) * dim
    clock = 2 * NUM_TIME_FREQUENCIES * min(dim, 1024)
    expected = training_flops(config, STREAM, C, S) - 2 * (tokens + clock)
    assert count(config, backward=True) == expected


def test_gap3d_takes_about_ten_teraflop_per_sample() -> None:
    """By hand: 24 blocks of 2 N (5 d^2 + 3 d h) + 4 N (N + S) d, thrice; the rest is below 1 %."""
    recipe = installed().get("recipes", "gap3d")
    stream = installed().get("encoders", recipe.encoder).stream
    assert recipe.head is not None
    n, d, h = 1374, 1792, 4864
    by_hand = 3 * 24 * (2 * n * (5 * d * d + 3 * d * h) + 4 * n * (n + 64) * d)
    found = training_flops(recipe.head, stream, 2048, recipe.num_soft_tokens)
    assert by_hand < found < 1.01 * by_hand
