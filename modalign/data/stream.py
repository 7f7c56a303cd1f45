"""The order of training: which sample stands at which slot, computed from the seed alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import accumulate

from modalign.data.cached import Cached
from modalign.data.permutation import key, permute
from modalign.errors import ModalignError, SampleError
from modalign.specs import Dataset, Example, Sharded
from modalign.tokens import TokenStream

MAX_BLOCK = 1000  # slots over which a mix is exact

# What a key is for; two uses never share one.
MIX, SHARD, WINDOW = range(3)


@dataclass(frozen=True)
class Sample:
    """The training pair at `slot`; `target` is its stream (1, K, D) where a cache holds it."""

    slot: int
    example: Example
    target: TokenStream | None = None


@dataclass(frozen=True)
class Skipped:
    """A slot left empty: the sample cannot be used. `reason` is one line."""

    slot: int
    identifier: str
    reason: str


@dataclass(frozen=True)
class Place:
    """What a slot stands for: sample `index` of source number `source`, in pass `epoch` over it."""

    source: int
    epoch: int
    index: int


class Stream:
    """An endless mix of data sets, addressed by slot: a pure function of (seed, slot).

    Step k, from 1, of a run with global batch B uses slots (k-1)B..kB-1; ranks and workers take
    shares of them. There is no other state, so a run resumes at any sample, on any number of
    machines.

    Within a block of slots each source has exactly its share, in seeded order. A source with an end
    shows every sample once per epoch, each epoch in another order; one without gives its indices as
    they come.
    """

    def __init__(
        self, sources: Sequence[tuple[Dataset, float]], *, seed: int, window: int = 10_000
    ) -> None:
        """`sources` are (data set, ratio); ratios need not sum to 1.

        Args:
            sources: what is mixed. Shares are exact where a block of at most 1000 slots can hold
                them, and rounded to thousandths otherwise.
            seed: of every order.
            window: samples that are shuffled among each other in a data set of shards: its shards
                are put into a seeded order, then each window of samples is shuffled, so that reads
                stay within a few shards. One without shards is shuffled as a whole.

        Raises:
            ModalignError: there is no source, one is empty, or a ratio cannot be kept.
        """
        if not sources:
            raise ModalignError("there is no data to train on; give at least one source")
        if window < 1:
            raise ModalignError(f"a window of {window} samples cannot be shuffled; give 1 or more")
        self.datasets = tuple(dataset for dataset, _ in sources)
        # Tokens beside a data set change nothing about its order.
        self._ordered = tuple(
            dataset.dataset if isinstance(dataset, Cached) else dataset for dataset in self.datasets
        )
        self.counts = shares([ratio for _, ratio in sources])
        self.block = sum(self.counts)
        self.seed, self.window = seed, window
        self._ends = list(accumulate(self.counts))
        self._orders: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        for number, dataset in enumerate(self._ordered):
            if isinstance(dataset, Sized) and len(dataset) == 0:
                raise ModalignError(f"source {number} ({dataset}) has no samples")

    def __getitem__(self, slot: int) -> Sample | Skipped:
        """What stands at `slot`, a number from 0 on."""
        place = self.place(slot)
        dataset = self.datasets[place.source]
        try:
            if isinstance(dataset, Cached):
                example, target = dataset.sample(place.index, place.epoch)
                return Sample(slot, example, target)
            return Sample(slot, dataset.example(place.index, place.epoch))
        except SampleError as error:
            return Skipped(slot, error.identifier, error.reason)

    def __iter__(self) -> Iterator[Sample | Skipped]:
        """All slots from 0 on, without end."""
        slot = 0
        while True:
            yield self[slot]
            slot += 1

    def place(self, slot: int) -> Place:
        """Which sample stands at `slot`; nothing is read."""
        if slot < 0:
            raise IndexError(f"slot {slot} does not exist; slots start at 0")
        block, position = divmod(slot, self.block)
        rank = permute(position, self.block, key(self.seed, MIX, block))
        source = bisect_right(self._ends, rank)
        # The sources' turns are numbered without a gap, so each has every turn exactly once.
        turn = block * self.counts[source] + rank - (self._ends[source] - self.counts[source])
        dataset = self._ordered[source]
        if not isinstance(dataset, Sized):
            return Place(source, 0, turn)
        epoch, position = divmod(turn, len(dataset))
        return Place(source, epoch, self._shuffled(source, epoch, position, len(dataset)))

    def _shuffled(self, source: int, epoch: int, position: int, size: int) -> int:
        dataset = self._ordered[source]
        if not isinstance(dataset, Sharded):
            return permute(position, size, key(self.seed, WINDOW, source, epoch))
        first, ends = self._shard_order(source, epoch, dataset)
        window, offset = divmod(position, self.window)
        start = window * self.window
        inside = min(self.window, size - start)
        position = start + permute(offset, inside, key(self.seed, WINDOW, source, epoch, window))
        shard = bisect_right(ends, position)
        return first[shard] + position - (ends[shard - 1] if shard else 0)

    def _shard_order(
        self, source: int, epoch: int, dataset: Sharded
    ) -> tuple[list[int], list[int]]:
        """First index of each shard in this epoch's order, and where each ends in the epoch."""
        if (source, epoch) not in self._orders:
            sizes = dataset.shard_sizes
            starts = [0, *accumulate(sizes)]
            secret = key(self.seed, SHARD, source, epoch)
            order = [permute(number, len(sizes), secret) for number in range(len(sizes))]
            # Around an epoch's end two orders are in use; older ones are not asked for again.
            for old in [old for old in self._orders if old[0] == source][:-1]:
                del self._orders[old]
            self._orders[source, epoch] = (
                [starts[number] for number in order],
                list(accumulate(sizes[number] for number in order)),
            )
        return self._orders[source, epoch]


def shares(ratios: Sequence[float]) -> list[int]:
    """Slots of each source in a block, as few as keep the ratios, at most 1000 together.

    Raises:
        ModalignError: a ratio is not positive, or below a thousandth of the mix.
    """
    total = sum(ratios)
    for ratio in ratios:
        if not 0 < ratio < float("inf"):
            raise ModalignError(f"a mixing ratio must be a positive number, got {ratio:g}")
    for block in range(len(ratios), MAX_BLOCK + 1):
        exact = [ratio * block / total for ratio in ratios]
        if all(abs(share - round(share)) < 1e-9 * block and share > 0.5 for share in exact):
            return [round(share) for share in exact]
    exact = [ratio * MAX_BLOCK / total for ratio in ratios]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda k: counts[k] - exact[k])
    for number in by_remainder[: MAX_BLOCK - sum(counts)]:
        counts[number] += 1
    if 0 in counts:
        small = ratios[counts.index(0)]
        raise ModalignError(
            f"ratio {small:g} is less than 1/{MAX_BLOCK} of the mix of {total:g}; raise it or "
            "leave the source out"
        )
    return counts
