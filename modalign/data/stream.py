"""A mixture of data sets as one endless stream of samples, a pure function of seed and slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modalign.errors import ModalignError
from modalign.specs import Dataset, Example
from modalign.tokens import TokenStream


@dataclass(frozen=True)
class Sample:
    """What a slot holds; `target` is the example's stream (1, K, D), if it was encoded before."""

    slot: int
    example: Example
    target: TokenStream | None = None


@dataclass(frozen=True)
class Skipped:
    """A slot that stays empty because its sample cannot be used."""

    slot: int
    identifier: str
    reason: str


class Stream:
    """Samples by slot. Resume, ranks and workers need no other state than a slot's number."""

    def __init__(
        self, sources: Sequence[tuple[Dataset, float]], *, seed: int, window: int = 10_000
    ) -> None:
        """`sources` are data sets, each with its share of the slots; shares need not add to 1."""
        if not sources or min(ratio for _, ratio in sources) <= 0:
            raise ValueError("a stream needs data sets, each with a mixing ratio above 0")
        self.datasets = [dataset for dataset, _ in sources]
        total = sum(ratio for _, ratio in sources)
        self.shares = np.cumsum([ratio / total for _, ratio in sources])
        self.seed, self.window = seed, window

    def __getitem__(self, slot: int) -> Sample | Skipped:
        """The sample of `slot`, the same on every machine."""
        draw = np.random.default_rng((self.seed, slot)).random()
        source = min(int(np.searchsorted(self.shares, draw, "right")), len(self.datasets) - 1)
        try:
            return Sample(slot, self.datasets[source].example(slot))
        except (ModalignError, OSError, ValueError) as error:
            return Skipped(slot, f"slot {slot}", str(error))
