"""One process beside two: how much of the second one is gained, and what state each holds.

`pytest benchmarks/test_scaling.py -m slow -s`: minutes. One thread each, over gloo. Ways take
turns, so that whatever else the machine does falls on all; where it is busy, read processor time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.timing import Clock
from modalign import DiTConfig, Pipeline, Prompt, Recipe, build, installed
from modalign.training.batches import Part, Step
from modalign.training.loop import backward
from modalign.training.run import Run, seeded
from modalign.training.spread import spread
from modalign.training.state import State
from modalign.training.world import World, joined

HEAD = DiTConfig(hidden_size=320, depth=6, num_heads=5, multiple_of=64)
BATCH, STEPS, ROUNDS = 8, 6, 2
WAYS = {  # name: processes, those that share a copy, global batch
    "one process": (1, None, BATCH),
    "two, sharded, same batch": (2, 2, BATCH),
    "two, replicas, same batch": (2, 1, BATCH),
    "two, sharded, twice the batch": (2, 2, 2 * BATCH),
}
# Forked from a server that has imported everything.
servers = multiprocessing.get_context("forkserver")
servers.set_forkserver_preload(
    ["benchmarks.test_scaling", "torch.distributed.fsdp", "torch._dynamo"]
)


def recipe(batch: int) -> Recipe:
    found: Recipe = installed().get("recipes", "gap3d-mini")
    return found.derive(name="scaling", head=HEAD, generator=None, training={"batch_size": batch})


def taken(pipeline: Pipeline, run: Run, world: World) -> dict[str, float]:
    """Medians of seconds per step, and bytes of what a process holds between steps."""
    spread(pipeline, run.recipe.training, world)
    state, clock = State(pipeline, run.recipe.training, world), Clock()
    each = run.recipe.training.batch_size // world.size
    draw = torch.Generator().manual_seed(world.rank)
    groups = pipeline.stream.groups
    batch: dict[str, Any] = {
        "prompt": pipeline.parts.vlm.prepare(
            [Prompt(f"a red mug number {k}") for k in range(each)]
        ),
        "target": {
            group.name: torch.randn(each, group.num_tokens, group.dim, generator=draw)
            for group in groups
        },
    }
    samples = torch.tensor(float(run.recipe.training.batch_size))

    def step(number: int) -> None:
        slots = tuple(range(number * each, (number + 1) * each))
        state.clear_gradients()
        backward(run, pipeline, Step(number, [Part(batch, slots)]), samples, world)
        state.take(number, 1e-4, samples)

    for number in range(1, STEPS + 2):
        clock(step, number)
    gradients = sum(w.grad.nbytes for w in state.weights.values() if w.grad is not None)
    held = sum(piece.tensor.nbytes for piece in state.pieces().values())
    return {"wall": clock.wall, "cpu": clock.cpu, "bytes": held + gradients}


def process(rank: int, way: str, port: int, folder: Path) -> None:
    size, shard, batch = WAYS[way]
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    chosen = recipe(batch)
    with seeded(0):
        pipeline = build(chosen, weights="untrained").train()
    with joined("cpu", shard) as world:
        found = taken(pipeline, Run(chosen, (), folder, STEPS), world)
    (folder / f"{rank}.json").write_text(json.dumps(found))


def launched(way: str, folder: Path) -> list[dict[str, float]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True)
    size = WAYS[way][0]
    ranks = [servers.Process(target=process, args=(k, way, port, folder)) for k in range(size)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join()
    return [json.loads((folder / f"{k}.json").read_text()) for k in range(size)]


@pytest.mark.slow
def test_two_processes_against_one(benchmark: Any, tmp_path: Path) -> None:
    found: dict[str, list[list[dict[str, float]]]] = {way: [] for way in WAYS}

    def turn() -> None:
        for way, rounds in found.items():
            rounds.append(launched(way, tmp_path / f"{way}-{len(rounds)}"))

    benchmark.pedantic(turn, rounds=ROUNDS)
    # Seconds of a step: of the slower process, and of the processors of all.
    wall = {
        way: statistics.median(max(rank["wall"] for rank in ranks) for ranks in rounds)
        for way, rounds in found.items()
    }
    cpu = {
        way: statistics.median(sum(rank["cpu"] for rank in ranks) for ranks in rounds)
        for way, rounds in found.items()
    }
    for way, (size, _, batch) in WAYS.items():
        times = batch / BATCH
        told = {
            "samples/s": batch / wall[way],
            "efficiency": wall["one process"] * times / wall[way] / size,
            "efficiency, processor time": cpu["one process"] * times / cpu[way],
            "MB of state per process": max(rank["bytes"] for rank in found[way][0]) / 1e6,
        }
        benchmark.extra_info[way] = told
        print(f"\n{way}: " + ", ".join(f"{k} {v:.4g}" for k, v in told.items()))  # noqa: T201
    held = {way: [rank["bytes"] for rank in rounds[0]] for way, rounds in found.items()}
    assert held["two, replicas, same batch"] == 2 * held["one process"]
    assert sum(held["two, sharded, same batch"]) < 1.01 * held["one process"][0]
