"""Data sets without files, of which everything is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from modalign import Example, Prompt, SampleError


class Endless:
    """Sample i says i; samples in `bad` cannot be used."""

    def __init__(self, bad: Sequence[int] = (), name: str = "world") -> None:
        self.bad, self.name = frozenset(bad), name

    def example(self, index: int, epoch: int = 0) -> Example:
        if index in self.bad:
            raise SampleError(f"{self.name}/{index}", "it is bad on purpose")
        shade = np.full((16, 16, 3), 1 + index % 250, np.uint8)
        return Example(
            Prompt(f"{index} in {epoch}"), Image.fromarray(shade), identifier=f"{self.name}/{index}"
        )


class Finite(Endless):
    """The first `length` samples of it."""

    def __init__(self, length: int, bad: Sequence[int] = (), name: str = "world") -> None:
        super().__init__(bad, name)
        self.length = length

    def __len__(self) -> int:
        return self.length


class Shards(Finite):
    """In runs of `sizes`."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(sum(sizes))
        self.shard_sizes = tuple(sizes)
