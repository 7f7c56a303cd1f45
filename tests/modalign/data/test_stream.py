"""The order of training: what stands where, for one seed and every machine."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

from modalign import ModalignError
from modalign.data import Place, Sample, Skipped, Stream, permute
from modalign.data.stream import shares
from tests.modalign.data.worlds import Endless, Finite, Shards

NOTED = [
    (1, 0, 0),
    (0, 0, 0),
    (0, 0, 3),
    (0, 0, 1),
    (0, 0, 2),
    (1, 0, 1),
    (0, 0, 7),
    (0, 0, 5),
    (0, 0, 6),
    (0, 0, 9),
    (0, 0, 4),
    (1, 0, 2),
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_a_permutation_takes_every_position_once(size: int) -> None:
    for secret in (0, 1, 2**64 - 1):
        assert sorted(permute(k, size, secret) for k in range(size)) == list(range(size))


def test_a_permutation_sends_a_position_everywhere_equally_often() -> None:
    """Chi-squared of 20 cells over 4000 secrets: 19 expected, 43.8 at one in a thousand."""
    for position in (0, 7, 19):
        found = Counter(permute(position, 20, secret) for secret in range(4000))
        assert sum((found[k] - 200) ** 2 / 200 for k in range(20)) < 43.8


def test_a_permutation_of_31_million_is_computed_without_a_table() -> None:
    """The size of GAP3D's first stage; a second of each pair is sent elsewhere than the first."""
    size = 31_000_000
    places = [permute(k, size, 9) for k in range(0, size, 311_111)]
    assert len(set(places)) == len(places)
    assert all(0 <= place < size for place in places)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.0], [1]),
        ([0.8, 0.2], [4, 1]),
        ([25, 6], [25, 6]),
        ([0.5, 0.3, 0.2], [5, 3, 2]),
        ([1 / 3, 2 / 3], [1, 2]),
        ([3.14159, 1.0], [759, 241]),  # 758.55 and 241.45 thousandths
    ],
)
def test_shares_are_the_smallest_whole_numbers_that_keep_the_ratios(
    ratios: list[float], expected: list[int]
) -> None:
    assert shares(ratios) == expected


@pytest.mark.parametrize("ratios", [[0.0, 1.0], [-1.0], [float("nan")], [1.0, 1e-6]])
def test_a_ratio_that_cannot_be_kept_is_refused(ratios: list[float]) -> None:
    with pytest.raises(ModalignError, match="ratio"):
        shares(ratios)


def test_every_block_of_slots_has_each_source_in_its_share() -> None:
    stream = Stream([(Finite(50), 0.5), (Finite(7), 0.3), (Endless(), 0.2)], seed=1)
    sources = [stream.place(slot).source for slot in range(400)]
    for start in range(0, 400, 10):
        assert Counter(sources[start : start + 10]) == {0: 5, 1: 3, 2: 2}
    assert sources[:10] != sources[10:20] or sources[:10] != sources[20:30]


@pytest.mark.parametrize("window", [1, 3, 10, 1000])
def test_every_sample_comes_once_per_epoch_and_epochs_differ(window: int) -> None:
    for dataset in (Finite(57), Shards([20, 1, 7, 29])):
        stream = Stream([(dataset, 1.0)], seed=3, window=window)
        orders = []
        for epoch in range(4):
            places = [stream.place(slot) for slot in range(57 * epoch, 57 * (epoch + 1))]
            assert {place.epoch for place in places} == {epoch}
            order = [place.index for place in places]
            assert sorted(order) == list(range(57))
            orders.append(tuple(order))
        assert len(set(orders)) == 4


def test_a_mix_shows_every_sample_of_each_source_once_per_epoch() -> None:
    """300 slots of 2:1 are 200 turns, 4 epochs of 50, and 100 turns, 5 of 20."""
    stream = Stream([(Finite(50), 2.0), (Shards([8, 12]), 1.0)], seed=4)
    seen = Counter(stream.place(slot) for slot in range(300))
    expected = [Place(0, epoch, index) for epoch in range(4) for index in range(50)]
    expected += [Place(1, epoch, index) for epoch in range(5) for index in range(20)]
    assert seen == Counter(expected)


def test_a_shuffled_window_reads_few_shards() -> None:
    """Windows of 50 in shards of 100 begin and end inside one shard, in every epoch."""
    stream = Stream([(Shards([100] * 12), 1.0)], seed=5, window=50)
    firsts = []
    for start in range(0, 2400, 50):
        shards = {stream.place(slot).index // 100 for slot in range(start, start + 50)}
        assert len(shards) == 1
        firsts.append(shards.pop())
    assert firsts[:24] != firsts[24:]
    assert firsts[:24:2] != sorted(firsts[:24:2])


def test_a_slot_does_not_depend_on_what_was_asked_before() -> None:
    """A resumed run, a rank and a worker each ask for other slots of the same stream."""
    sources = [(Shards([9, 4, 30]), 0.7), (Finite(11), 0.3)]
    straight = Stream(sources, seed=6, window=8)
    places = [straight.place(slot) for slot in range(300)]
    other = pickle.loads(pickle.dumps(Stream(sources, seed=6, window=8)))
    for slot in reversed(range(300)):
        assert other.place(slot) == places[slot]
    assert [Stream(sources, seed=7, window=8).place(slot) for slot in range(300)] != places


def test_the_order_is_the_same_on_every_machine() -> None:
    """Numbers noted when the order was first written down; a change breaks resumed runs."""
    stream = Stream([(Shards([5, 6, 7]), 3.0), (Endless(), 1.0)], seed=42, window=4)
    found = [(place.source, place.epoch, place.index) for place in map(stream.place, range(12))]
    assert found == NOTED


def test_a_source_without_end_gives_its_indices_in_turn() -> None:
    stream = Stream([(Endless(), 1.0)], seed=0)
    assert [stream.place(slot).index for slot in (0, 1, 2, 10**9)] == [0, 1, 2, 10**9]


def test_a_bad_sample_leaves_its_slot_empty_and_named() -> None:
    stream = Stream([(Finite(20, bad=[3, 8]), 1.0)], seed=0)
    found = [stream[slot] for slot in range(40)]
    empty = [item for item in found if isinstance(item, Skipped)]
    assert Counter(item.identifier for item in empty) == {"world/3": 2, "world/8": 2}
    assert {item.reason for item in empty} == {"it is bad on purpose"}
    assert [item.slot for item in found] == list(range(40))
    full = [item for item in found if isinstance(item, Sample)]
    assert len({item.example.prompt.text for item in full}) == 36  # "index in epoch", once each


def test_an_error_that_is_nobody_s_bad_sample_stops_the_run() -> None:
    class Broken(Endless):
        def example(self, index: int, epoch: int = 0) -> object:  # type: ignore[override]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _ = Stream([(Broken(), 1.0)], seed=0)[0]


def test_senseless_streams_are_refused() -> None:
    for make in (
        lambda: Stream([], seed=0),
        lambda: Stream([(Finite(0), 1.0)], seed=0),
        lambda: Stream([(Finite(3), 1.0)], seed=0, window=0),
    ):
        with pytest.raises(ModalignError):
            make()
    with pytest.raises(IndexError):
        _ = Stream([(Finite(3), 1.0)], seed=0)[-1]
