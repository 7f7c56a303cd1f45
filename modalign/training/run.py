"""A run: what was asked for, the folder it lives in, and how it starts or continues."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modalign.assets import write_whole
from modalign.errors import ModalignError, OutputError, WeightsError
from modalign.pipeline import Pipeline
from modalign.recipe import Recipe
from modalign.training.snapshots import Snapshot, Snapshots
from modalign.training.state import State
from modalign.training.world import World

# These change where and how fast a run computes, not what: they may differ when it continues.
FREE = ("training.accumulation", "training.compile", "training.gradient_checkpointing")


@dataclass(frozen=True)
class Run:
    """What one training is. `start` is a checkpoint to start from; None draws fresh weights.

    `evaluate` is the data set, as in `data`, whose first samples are watched; None watches nothing.
    `evaluate_pictures` of them, at most 16, go through the generator each time.
    """

    recipe: Recipe
    data: tuple[str, ...]
    folder: Path
    steps: int
    seed: int = 0
    start: str | None = None
    save_every: int = 500
    keep_last: int = 2
    keep_every: int = 0
    log_every: int = 10
    evaluate: str | None = None
    evaluate_every: int = 1000
    evaluate_pictures: int = 0
    workers: int = 0

    @property
    def model(self) -> Path:
        """The trained file."""
        return self.folder / "model.safetensors"

    def model_at(self, step: int) -> Path:
        """The trained file by a checkpoint that is kept."""
        return self.folder / "models" / f"step-{step:08d}.safetensors"

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be the same one, by dotted name."""
        content = {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": list(self.data),
            "steps": self.steps,
            "seed": self.seed,
            "from": self.start,
        }
        return json.loads(json.dumps(content))  # type: ignore[no-any-return]

    def claim(self) -> None:
        """Make the folder this run's own, or see that it already is.

        Raises:
            OutputError: the folder cannot be written.
            ModalignError: it holds another run; every difference is named.
        """
        record = self.folder / "run.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not record.exists():
                write_whole(record, (json.dumps(self.identity(), indent=1) + "\n").encode())
                return
            there = json.loads(record.read_text())
        except OSError as error:
            raise OutputError(
                f"cannot write into {self.folder}: {error.strerror or error}"
            ) from error
        except ValueError as error:
            raise ModalignError(f"{record} cannot be read: {error}") from error
        own, other = _flat(self.identity()), _flat(there)
        differences = [
            f"{name.removeprefix('recipe.')} is {other.get(name)!r} there, {own.get(name)!r} here"
            for name in sorted({*own, *other})
            if own.get(name) != other.get(name) and name.removeprefix("recipe.") not in FREE
        ]
        if differences:
            raise ModalignError(
                f"{self.folder} holds another run: {'; '.join(differences)}; use another --output, "
                "or the command it was started with"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process trains into the folder. A process that dies lets go of it.

        Raises:
            ModalignError: another one does.
        """
        with (self.folder / "run.lock").open("w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ModalignError(
                    f"{self.folder} is being trained by another process; wait for it, or use "
                    "another --output"
                ) from error
            yield


def continued(snapshots: Snapshots, state: State, world: World) -> tuple[int, list[str]]:
    """Fill `state` from the newest checkpoint that is whole; its step, 0 if there is none.

    Also returns what was wrong with those passed over.
    """
    complaints: list[str] = []
    chosen = 0
    if world.rank == 0:
        snapshots.clean()
        for step in reversed(snapshots.steps()):
            try:
                Snapshot(snapshots.path(step)).verify()
                chosen = step
                break
            except WeightsError as error:
                complaints.append(f"{error}; the one before is used")
    chosen = world.agreed(chosen)
    if chosen:
        with world.together():
            snapshot = Snapshot(snapshots.path(chosen))
            sums = snapshot.scalars("sum.")
            state.sums = {name: value.to(world.device) for name, value in sums.items()}
            snapshot.fill(state.pieces())
    return chosen, complaints


def export(run: Run, pipeline: Pipeline, state: State, world: World, step: int, path: Path) -> None:
    """Write what is trained as one checkpoint file: the first average, if the recipe has any.

    Every process must call it.

    Raises:
        OutputError: the file cannot be written.
    """
    decays = run.recipe.training.ema_decays
    tensors = state.exported()
    if world.rank == 0:
        told = {"steps": step, "data": list(run.data), "seed": run.seed}
        if decays:
            told["ema_decay"] = decays[0]
        pipeline.save(path, tensors=tensors, training=told)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, what draws without a generator draws from `seed`; outside, nothing has happened.

    torch's own initialisation takes no generator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
