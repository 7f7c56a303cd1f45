"""Slots of the stream become the batches of a step: each process prepares its own share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from modalign.data.stream import Sample, Skipped, Stream
from modalign.errors import ModalignError
from modalign.pipeline import Batch, Pipeline
from modalign.specs import Prompt
from modalign.training.world import World


@dataclass
class Part:
    """One forward pass: what the pipeline reads, and the slots it stands for.

    Without any usable sample the batch is a stand-in and `slots` is empty: the pass then takes
    part in what processes do together, and counts nothing.
    """

    batch: Batch
    slots: tuple[int, ...]
    skipped: tuple[Skipped, ...] = ()

    def generators(self, seed: int, device: torch.device) -> list[torch.Generator]:
        """One per element, seeded by the run and the element's slot and nothing else."""
        return [
            torch.Generator(device).manual_seed(slot_seed(seed, slot))
            for slot in self.slots or (0,)
        ]


@dataclass
class Step:
    """One optimiser step of this process: its parts, and the seconds it was waited for."""

    number: int
    parts: list[Part]
    waited: float = 0.0
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """How many elements count."""
        return sum(len(part.slots) for part in self.parts)


def slot_seed(seed: int, slot: int) -> int:
    """The seed of what is drawn for a slot: well mixed, so that neighbours share nothing."""
    return int(np.random.SeedSequence((seed, slot)).generate_state(1, np.uint64)[0])


class Batches(Dataset[Step]):
    """Steps by number, from 1. Step k of a run of global batch B uses slots (k - 1) B to k B - 1.

    Each process takes a contiguous share of them, in `accumulation` parts.
    """

    def __init__(
        self,
        stream: Stream,
        pipeline: Pipeline,
        batch_size: int,
        accumulation: int,
        world: World,
    ) -> None:
        """The parts' `prepare` must be picklable where workers are spawned.

        Raises:
            ModalignError: the batch cannot be cut into equal parts.
        """
        self.pieces = world.size * accumulation
        if batch_size % self.pieces:
            raise ModalignError(
                f"a batch of {batch_size} cannot be cut into equal parts for {world.size} "
                f"processes with accumulation {accumulation}; use a multiple of {self.pieces}"
            )
        self.stream, self.batch_size, self.accumulation = stream, batch_size, accumulation
        self.parts, self.layout, self.rank = pipeline.parts, pipeline.stream, world.rank
        self.collate = pipeline.collate

    def slots(self, step: int) -> range:
        """All slots of a step, of every process."""
        return range((step - 1) * self.batch_size, step * self.batch_size)

    def __getitem__(self, step: int) -> Step:
        """This process's share of a step."""
        each = self.batch_size // self.pieces
        mine = self.slots(step)[self.rank * self.accumulation * each :]
        pieces = (mine[k * each : (k + 1) * each] for k in range(self.accumulation))
        return Step(step, [self._part(piece) for piece in pieces])

    def steps(self, first: int, last: int, workers: int = 0) -> Iterator[Step]:
        """Steps `first` to `last` in order, prepared ahead by `workers` processes."""
        loader = DataLoader(
            self,
            sampler=range(first, last + 1),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            generator=torch.Generator(),  # its draws are not used; the global one stays as it is
        )
        incoming = iter(loader)
        while True:
            started = time.perf_counter()
            step = next(incoming, None)
            if step is None:
                return
            step.waited = time.perf_counter() - started
            step.skipped = [skip for part in step.parts for skip in part.skipped]
            for part in step.parts:
                # FSDP would move a dict to the GPU as a whole; adapters know what stays.
                part.batch = MappingProxyType(part.batch)
            yield step

    def identifiers(self, step: int) -> list[str]:
        """What the samples of a step are called, over all processes."""
        found = (self.stream[slot] for slot in self.slots(step))
        return [
            entry.example.identifier or f"slot {entry.slot}"
            for entry in found
            if isinstance(entry, Sample)
        ]

    def _part(self, slots: Sequence[int]) -> Part:
        entries = [self.stream[slot] for slot in slots]
        skipped = [entry for entry in entries if isinstance(entry, Skipped)]
        samples = [entry for entry in entries if isinstance(entry, Sample)]
        samples.sort(key=lambda sample: sample.target is None)  # as the pipeline reads them
        try:
            batch = self._batch(samples) if samples else None
        except (ModalignError, ValueError):
            kept = []
            for sample in samples:
                try:
                    self._batch([sample])
                    kept.append(sample)
                except (ModalignError, ValueError) as error:
                    skipped.append(Skipped(sample.slot, sample.example.identifier, str(error)))
            if len(kept) == len(samples):
                raise
            samples, batch = kept, self._batch(kept) if kept else None
        return Part(
            self._stand_in() if batch is None else batch,
            tuple(sample.slot for sample in samples),
            tuple(skipped),
        )

    def _batch(self, samples: Sequence[Sample]) -> dict[str, Any]:
        targets = [sample.target for sample in samples if sample.target is not None]
        if not targets:
            return dict(self.collate([sample.example for sample in samples]))
        batch: dict[str, Any] = {
            "prompt": self.parts.vlm.prepare([sample.example.prompt for sample in samples]),
            "target": {
                name: torch.cat([target[name] for target in targets]) for name in self.layout.names
            },
        }
        live = [sample.example for sample in samples if sample.target is None]
        if live:
            batch["image"] = self.collate(live)["image"]
        return batch

    def _stand_in(self) -> dict[str, Any]:
        groups = self.layout.groups
        return {
            "prompt": self.parts.vlm.prepare([Prompt("nothing")]),
            "target": {group.name: torch.zeros(1, group.num_tokens, group.dim) for group in groups},
        }
