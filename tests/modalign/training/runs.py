"""Runs of the stub recipe in processes of their own, which may be killed at a chosen point.

Processes are forked from a server that has imported everything, so that one takes a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from modalign import (
    DatasetSpec,
    Example,
    Prompt,
    Recipe,
    Registry,
    SampleError,
    hookimpl,
    installed,
)
from modalign.cli import shown
from modalign.errors import ModalignError
from modalign.training import snapshots
from modalign.training.run import Run
from modalign.training.start import planned, start
from modalign.training.state import State
from modalign.training.world import patient
from tests.modalign import stubs

RECIPE = stubs.RECIPE.derive(
    training={
        "batch_size": 8,
        "steps": 9,
        "lr": 1e-2,
        "warmup": 0.2,
        "ema_decay": (0.9, 0.5),
        "data": ("pairs",),
    },
)
TOLD = ("loss", "loss_cls", "loss_patches", "grad_norm", "samples", "lr", "skipped_steps")
servers = multiprocessing.get_context("forkserver")
servers.set_forkserver_preload(
    [
        "tests.modalign.training.runs",
        "torch.distributed.fsdp",
        "torch.utils.tensorboard",
        "torch._dynamo",
    ]
)


class Pairs:
    """Sample i says and shows i; every eleventh cannot be used."""

    def __init__(self, bad: int = 11) -> None:
        self.bad = bad

    def example(self, index: int, epoch: int = 0) -> Example:
        if self.bad and index % self.bad == 5:
            raise SampleError(f"pair/{index}", f"picture {index} is damaged")
        image = np.full((2, 2, 3), index % 251, dtype=np.uint8)
        return Example(Prompt("x" * (1 + index % 50)), image, identifier=f"pair/{index}")


class Holes:
    """A tar whose samples in `hole` are left out, whatever they hold."""

    def __init__(self, path: str, hole: list[int]) -> None:
        self.tar, self.holes = webdataset().build(path=path), frozenset(hole)
        self.shard_sizes = self.tar.shard_sizes

    def __len__(self) -> int:
        return len(self.tar)

    def example(self, index: int, epoch: int = 0) -> Example:
        found = self.tar.example(index, epoch)
        name = found.identifier.rpartition("/")[2]
        if int(name) in self.holes:
            raise SampleError(found.identifier, "a hole")
        return found


def webdataset() -> DatasetSpec:
    return installed().get("datasets", "webdataset")


class Data:
    @hookimpl
    def modalign_datasets(self) -> list[DatasetSpec]:
        own = [DatasetSpec(name="pairs", build=Pairs), DatasetSpec(name="holes", build=Holes)]
        return [*own, webdataset()]


def registry(recipe: Recipe = RECIPE, **changes: Any) -> Registry:
    return stubs.registry(recipe, more=[Data()], **changes)


def plan(folder: Path, changes: Mapping[str, Any] | None = None, **options: Any) -> Run:
    recipe = RECIPE.derive(training=dict(changes or {}))
    options = {"save_every": 3, "log_every": 2, **options}
    return planned(recipe, registry(recipe), folder, **options)


def run(folder: Path, changes: Mapping[str, Any] | None = None, **options: Any) -> int:
    """In this process, on one thread as in `process`: the order of sums depends on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        asked = plan(folder, changes, **options)
        return start(asked, registry(asked.recipe))
    finally:
        torch.set_num_threads(threads)


def die(*arguments: Any, **options: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def prepare_death(point: str, step: int) -> None:
    """Arrange that this process kills itself at `point` of `step`."""
    take, complete = State.take, snapshots.Snapshots._complete
    save, forget = snapshots.save_file, snapshots.Snapshots._forget_old

    def take_or_die(self: State, number: int, *rest: Any) -> Any:
        return die() if number == step else take(self, number, *rest)

    def complete_or_die(self: Any, partial: Path, number: int) -> None:
        die() if number == step else complete(self, partial, number)

    def forget_or_die(self: Any, number: int) -> None:
        die() if number == step else forget(self, number)

    def save_or_die(tensors: Any, path: Path) -> None:
        save(tensors, path)
        if f"{step:08d}" in str(path):
            os.truncate(path, path.stat().st_size // 2)
            die()

    if point == "before the update":
        State.take = take_or_die
    elif point == "in the middle of a file":
        snapshots.save_file = save_or_die
    elif point == "before the manifest":
        snapshots.Snapshots._complete = complete_or_die
    elif point == "before old ones are removed":
        snapshots.Snapshots._forget_old = forget_or_die
    elif point == "asked to stop":

        def take_and_hear(self: State, number: int, *rest: Any) -> Any:
            if number == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return take(self, number, *rest)

        State.take = take_and_hear
    elif point == "disk full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (step, step))
    else:
        raise ValueError(point)


def process(
    rank: int,
    size: int,
    port: int,
    folder: Path,
    changes: Mapping[str, Any],
    options: Mapping[str, Any],
    shard: int | None,
    death: tuple[str, int] | None,
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    null = os.open(folder.with_suffix(f".stderr-{rank}"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(null, 2)
    if death is not None and rank == size - 1:
        prepare_death(*death)
    try:
        with patient():
            asked = plan(folder, changes, **options)
        start(asked, registry(asked.recipe), shard=shard)
    except ModalignError as error:
        os.write(2, f"{shown(error)}\n".encode())
        raise SystemExit(2) from error


def launch(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    size: int = 1,
    shard: int | None = None,
    death: tuple[str, int] | None = None,
    kill_at: tuple[int, float] | None = None,
    **options: Any,
) -> list[int]:
    """Exit codes of `size` processes; once one has died all do.

    Or all die at `kill_at` = (step, seconds): so long after the checkpoint of that step, or after
    the folder is claimed if it is 0.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (size, port, folder, dict(changes or {}), options, shard, death)
    processes = [servers.Process(target=process, args=(rank, *arguments)) for rank in range(size)]
    for one in processes:
        one.start()
    until = time.monotonic() + 600  # a busy machine is no failure
    while any(one.is_alive() for one in processes):
        if kill_at is not None and reached(folder) >= kill_at[0]:
            until, kill_at = time.monotonic() + kill_at[1], None
        if time.monotonic() > until or any(one.exitcode for one in processes):
            for one in processes:
                one.kill()
        time.sleep(0.005)
    codes = [one.exitcode for one in processes]
    for one in processes:
        one.close()
    return [code if code is not None else -1 for code in codes]


def reached(folder: Path) -> int:
    """The step of the newest checkpoint; 0 once the folder is claimed, -1 before."""
    found = [int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*")]
    return max(found, default=0 if (folder / "run.json").exists() else -1)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of the log: what does not depend on the clock."""
    content = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{name: row[name] for name in ("step", *TOLD)} for row in content if "loss" in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def said(folder: Path, rank: int = 0) -> str:
    return folder.with_suffix(f".stderr-{rank}").read_text()


def same(first: Path, second: Path) -> bool:
    """Bit for bit: the trained file, and every row of the log."""
    one, other = weights(first), weights(second)
    return (
        rows(first) == rows(second)
        and one.keys() == other.keys()
        and all(torch.equal(one[name], other[name]) for name in one)
    )
