"""What the training benchmark compares is the same step, at sizes small enough for every run."""

from __future__ import annotations

import pytest
import torch
from modalign_plugins.vlms.qwen2_5_vl_sizes import MINI
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import measured_step
from benchmarks.training_step import Bench, Sizing
from modalign import DiTConfig, TokenGroup, TokenStreamSpec

STREAM = TokenStreamSpec(
    space="test",
    groups=(
        TokenGroup(name="cls", shape=(1,), dim=12),
        TokenGroup(name="registers", shape=(4,), dim=12),
        TokenGroup(name="patches", shape=(5, 5), dim=12),
    ),
)


def small(dtype: torch.dtype = torch.float32) -> Sizing:
    return Sizing(
        head=DiTConfig(hidden_size=48, depth=2, num_heads=3, multiple_of=16),
        vlm=MINI,
        layers=2,
        batch=3,
        stream=STREAM,
        num_soft=6,
        dtype=dtype,
    )


@pytest.fixture(scope="module")
def bench() -> Bench:
    pytest.importorskip("diffusers")
    return Bench(small())


def test_the_released_design_has_the_same_loss_and_gradients(bench: Bench) -> None:
    """Two implementations of one function: ours, and public classes in the released order."""
    ours, released, draws = bench.ours(), bench.released(), bench.draw()
    losses = [ours.loss(draws), released.loss(draws)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    soft, theirs = ours.parameters[-1].grad, released.parameters[-1].grad
    assert soft is not None
    assert theirs is not None
    assert soft.abs().max() > 0
    torch.testing.assert_close(soft, theirs, rtol=1e-4, atol=1e-7)
    norms = [
        torch.nn.utils.get_total_norm([p.grad for p in step.parameters if p.grad is not None])
        for step in (ours, released)
    ]
    torch.testing.assert_close(*norms, rtol=1e-5, atol=0)
    for step in (ours, released):
        step.optimiser.zero_grad()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
def test_steps_of_both_stay_together(dtype: torch.dtype, tolerance: float) -> None:
    """Clipping and AdamW included, fused or not, with or without float32 copies."""
    bench = Bench(small(dtype))
    ours, released = bench.ours(), bench.released()
    found = [(ours(draws), released(draws)) for draws in [bench.draw() for _ in range(4)]]
    losses = torch.tensor(found)
    assert losses[0, 0] != losses[1, 0]
    torch.testing.assert_close(losses[:, 0], losses[:, 1], rtol=tolerance, atol=0)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.filterwarnings("ignore")  # of the compiler, about a CUDA that is not there
def test_the_benchmark_for_gpus_runs_at_a_small_size(compiled: bool, recompute: bool) -> None:
    told = measured_step(
        small(torch.bfloat16), compiled=compiled, recompute=recompute, rounds=2, side=256
    )
    assert all(figure > 0 for figure in told.values())
    # Against PyTorch's own count, which includes attention in the language model.
    assert told["TFLOP per sample"] == pytest.approx(counted(small()) / 1e12, rel=0.05)


def counted(sizing: Sizing) -> float:
    """Operations per sample of our step as they run."""
    bench = Bench(sizing)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        bench.ours().loss(bench.draw()).backward()
    return counter.get_total_flops() / sizing.batch
