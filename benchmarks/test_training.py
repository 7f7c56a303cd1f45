"""One training step at GAP3D's widths, beside the released design on the same numbers.

`pytest benchmarks/test_training.py -m slow -s`: minutes, 12 GB of memory. Two of 24 blocks and
three of 36 layers, the same share of both. Designs take turns inside each round, so that whatever
else the machine does falls on all of them; read the ratio of medians, not seconds.
`pytest benchmarks/test_training.py -m gpu -s` runs the whole 1.36 B head in bfloat16 instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from modalign_plugins.vlms.qwen2_5_vl_sizes import QWEN_3B

from benchmarks.timing import Clock, measured_step, product_flops
from benchmarks.training_step import Bench, Sizing
from modalign import DiTConfig, installed

DEPTH_SHARE = 12  # GAP3D has this many times the blocks and layers
ROUNDS = 3
# A sample's activations, all kept, take gigabytes: larger batches need recomputation.
GPU_BATCHES = [(8, False), (8, True), (16, True), (32, True), (64, True)]


def gap3d(*, depth: int, layers: int, batch: int, **options: Any) -> Sizing:
    recipe = installed().get("recipes", "gap3d")
    head = DiTConfig(**{**recipe.head.model_dump(), "depth": depth})
    stream = installed().get("encoders", recipe.encoder).stream
    return Sizing(
        head=head, vlm=QWEN_3B, layers=layers, batch=batch, stream=stream,
        num_soft=recipe.num_soft_tokens, **options,
    )  # fmt: skip


def show(title: str, told: Mapping[str, float]) -> None:
    print(f"\n{title}")  # noqa: T201
    for name, figure in told.items():
        print(f"  {name:<52} {figure:.4g}")  # noqa: T201


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_a_step_against_the_released_design(benchmark: Any, batch: int, dtype: torch.dtype) -> None:
    sizing = gap3d(depth=2, layers=3, batch=batch, dtype=dtype)
    bench = Bench(sizing)
    steps = {"released": bench.released(), "modalign": bench.ours()}
    word_loss, clocks = bench.unread_word_loss(), {"word loss": Clock()}
    clocks |= {name: Clock() for name in steps}
    rates: list[float] = []

    def turn() -> None:
        draws = bench.draw()
        rates.append(product_flops(dtype))
        losses = {name: float(clocks[name](step, draws)) for name, step in steps.items()}
        clocks["word loss"](word_loss)
        for loss in losses.values():  # they compute the same numbers, step after step
            far = abs(loss / losses["released"] - 1)
            assert far < (1e-3 if dtype == torch.float32 else 0.02), losses

    benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=1)
    released, ours = clocks["released"], clocks["modalign"]
    # The word loss does not grow with depth: at full depth it is a smaller part of a step.
    grows = released.cpu - clocks["word loss"].cpu
    told = {f"samples/s, {name}": batch / clocks[name].wall for name in steps} | {
        "ratio": released.wall / ours.wall,
        "ratio, processor time": released.cpu / ours.cpu,
        "ratio, processor time, reckoned for full depth": (
            (grows + clocks["word loss"].cpu / DEPTH_SHARE) / ours.cpu
        ),
        "processor seconds, released": released.cpu,
        "processor seconds, modalign": ours.cpu,
        "GFLOP per sample": sizing.flops() / 1e9,
        "GFLOP/s of a product of 2048, best": max(rates) / 1e9,
        **{
            f"MFU, {name}": sizing.flops() * batch / clocks[name].cpu / max(rates) for name in steps
        },
    }
    benchmark.extra_info.update(told)
    show(f"batch {batch}, {dtype}, {torch.get_num_threads()} threads", told)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_against_eager_ones(benchmark: Any) -> None:
    sizing = gap3d(depth=2, layers=3, batch=1, dtype=torch.bfloat16)
    bench = Bench(sizing)
    steps = {"eager": bench.ours(), "compiled": bench.ours(compiled=True)}
    clocks = {name: Clock() for name in steps}

    def turn() -> None:
        draws = bench.draw()
        losses = [float(clocks[name](step, draws)) for name, step in steps.items()]
        assert abs(losses[0] / losses[1] - 1) < 0.02

    benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=1)
    told = {"ratio, processor time": clocks["eager"].cpu / clocks["compiled"].cpu}
    benchmark.extra_info.update(told)
    show("compiled blocks", told)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("batch", "recompute"), GPU_BATCHES)
def test_the_whole_aligner(benchmark: Any, batch: int, recompute: bool, compiled: bool) -> None:
    sizing = gap3d(depth=24, layers=36, batch=batch, device="cuda", dtype=torch.bfloat16)
    how = {"compiled": compiled, "recompute": recompute}
    told = benchmark.pedantic(measured_step, args=(sizing,), kwargs=how)
    benchmark.extra_info.update(told)
    show(f"batch {batch}, {how}", told)
