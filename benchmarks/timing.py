"""How long a step takes, how much of the machine it uses, and what memory it needs."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.training_step import Bench, Sizing


class Clock:
    """Medians of the seconds that calls took, the first one, which warms up, left out.

    `cpu` is processor time of all threads: what other work on a shared machine takes does not
    count, so that with one thread it is what an idle machine would need.
    """

    def __init__(self) -> None:
        self._wall: list[float] = []
        self._cpu: list[float] = []

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._wall.append(time.perf_counter() - wall)
        self._cpu.append(time.process_time() - cpu)
        return result

    @property
    def wall(self) -> float:
        return statistics.median(self._wall[1:])

    @property
    def cpu(self) -> float:
        return statistics.median(self._cpu[1:])


def product_flops(dtype: torch.dtype, device: str = "cpu", side: int = 2048) -> float:
    """Operations per second of a square matrix product, the best of four.

    Of processor time on the CPU, for the same reason as `Clock.cpu`.
    """
    one = torch.randn(side, side, device=device, dtype=dtype)
    found = []
    for _ in range(4):
        clock = Clock()
        for _ in range(2):
            clock(torch.mm, one, one)
        found.append(clock.cpu if device == "cpu" else clock.wall)
    return 2 * side**3 / min(found)


def measured_step(
    sizing: Sizing, *, compiled: bool, recompute: bool, rounds: int = 10, side: int = 8192
) -> dict[str, float]:
    """Speed, model FLOP utilisation and peak memory of our step alone.

    Products are square, `side` wide. `recompute` keeps only what enters each block.
    """
    on_gpu = sizing.device == "cuda"
    bench = Bench(sizing)
    step, clock = bench.ours(compiled=compiled, recompute=recompute), Clock()
    del bench.head  # the step has a copy
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(rounds + 1):
        clock(step, bench.draw())
    rate = product_flops(sizing.dtype, sizing.device, side)
    seconds = clock.wall if on_gpu else clock.cpu
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "samples/s": sizing.batch / clock.wall,
        "TFLOP per sample": sizing.flops() / 1e12,
        f"TFLOP/s of a product of {side}": rate / 1e12,
        "MFU, of that": sizing.flops() * sizing.batch / seconds / rate,
        "peak memory, GB": (torch.cuda.max_memory_allocated() if on_gpu else resident) / 1e9,
    }
