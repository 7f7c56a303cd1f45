"""What a run tells its trackers, and how fast it goes."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from modalign.data.stream import Skipped
from modalign.training.batches import Step
from modalign.training.trackers import Picture, Tracker
from modalign.training.world import World

Evaluation = Callable[[Mapping[str, Tensor]], Mapping[str, float | Picture]]
"""Numbers and pictures by name, of the trained tensors as a run would export them now."""


class Report:
    """The trackers of rank 0; other processes have none, and only keep step."""

    def __init__(
        self,
        device: torch.device,
        trackers: Sequence[Tracker] = (),
        evaluation: Evaluation | None = None,
        *,
        evaluates: bool | None = None,
    ) -> None:
        """`evaluates`: whether any process has an evaluation; this one if None."""
        self.device, self.trackers, self._evaluate = device, trackers, evaluation
        self.evaluates = evaluation is not None if evaluates is None else evaluates
        self._steps, self._waited, self._since = 0, 0.0, time.perf_counter()
        self._skipped: list[tuple[int, Skipped]] = []

    def step(self, step: Step) -> None:
        """A step was taken; its samples that were left out are told of later."""
        self._steps += 1
        self._waited += step.waited
        self._skipped += [(step.number, skip) for skip in step.skipped]

    def skipped_samples(self, world: World) -> None:
        """A note for each sample left out by any process since the last call; all must call it."""
        found = world.gathered(self._skipped)
        for step, skip in sorted(found, key=lambda one: one[1].slot):
            self.note(step, f"sample {skip.identifier} was left out: {skip.reason}")
        self._skipped = []

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """`values` with the rate, the share of time spent waiting for data, and peak memory."""
        seconds = time.perf_counter() - self._since
        told = {
            **values,
            "samples_per_second": self._steps * values.get("samples", 0.0) / seconds,
            "data_wait": self._waited / seconds,
            "memory_gb": self._peak_memory() / 1e9,
        }
        for tracker in self.trackers:
            tracker.log(step, told)
        self._steps, self._waited, self._since = 0, 0.0, time.perf_counter()

    def evaluation(self, step: int, trained: Mapping[str, Tensor]) -> None:
        """Evaluate `trained`, and tell what was found under "eval/"."""
        if self._evaluate is None:
            return
        started = time.perf_counter()
        found = {f"eval/{name}": value for name, value in self._evaluate(trained).items()}
        numbers = {name: value for name, value in found.items() if isinstance(value, float)}
        for tracker in self.trackers:
            tracker.log(step, numbers)
            for name, value in found.items():
                if not isinstance(value, float):
                    tracker.picture(step, name, value)
        self._since += time.perf_counter() - started  # no part of how fast training is

    def note(self, step: int, text: str) -> None:
        """Something that happened, in a sentence."""
        for tracker in self.trackers:
            tracker.note(step, text)

    def _peak_memory(self) -> float:
        """Bytes: of the GPU if there is one, else of this process."""
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device))
        unit = 1.0 if platform.system() == "Darwin" else 1024.0  # macOS counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
