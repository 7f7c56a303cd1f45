"""Slots, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from modalign import SampleError, build
from modalign.data.stream import Sample, Skipped, Stream
from modalign.errors import ModalignError
from modalign.training.batches import Batches, slot_seed
from modalign.training.world import World
from tests.modalign import stubs
from tests.modalign.training import runs


def batches(pipeline: Any, batch_size: int, accumulation: int = 1, **place: int) -> Batches:
    stream = Stream([(runs.Pairs(), 1.0)], seed=0)
    return Batches(stream, pipeline, batch_size, accumulation, World(**place))


@pytest.fixture
def pipeline() -> Any:
    return build("stub", weights="untrained", registry=stubs.registry())


def test_a_slot_has_its_own_seed() -> None:
    """Neighbours, and runs of neighbouring seeds, share no draw."""
    seeds = {slot_seed(seed, slot) for seed in range(20) for slot in range(500)}
    assert len(seeds) == 10_000


def test_every_slot_is_taken_once_whatever_the_number_of_processes(pipeline: Any) -> None:
    found = []
    for size, accumulation in [(1, 1), (2, 1), (2, 3), (4, 3), (1, 4)]:
        slots: list[int] = []
        for rank in range(size):
            step = batches(pipeline, 24, accumulation, rank=rank, size=size)[3]
            assert len(step.parts) == accumulation
            slots += [slot for part in step.parts for slot in part.slots]
        found.append(slots)
    assert all(slots == found[0] for slots in found)
    assert found[0] == [slot for slot in range(48, 72) if slot % 11 != 5]


def test_a_batch_that_cannot_be_shared_is_refused(pipeline: Any) -> None:
    with pytest.raises(ModalignError, match="batch of 8 .* 3 processes .* use a multiple of 6"):
        batches(pipeline, 8, 2, rank=0, size=3)


def test_a_sample_that_cannot_be_collated_leaves_its_slot_empty(pipeline: Any) -> None:
    """The stub's language model reads at most 100 characters."""

    class LongTenth(runs.Pairs):
        def example(self, index: int, epoch: int = 0) -> Any:
            example = super().example(index)
            if index != 2:
                return example
            return runs.Example(runs.Prompt("x" * 101), example.image, identifier="long")

    stream = Stream([(LongTenth(), 1.0)], seed=0)
    step = next(Batches(stream, pipeline, 8, 1, World()).steps(1, 1))
    assert step.parts[0].slots == (0, 1, 3, 4, 6, 7)
    reasons = {skip.identifier: skip.reason for skip in step.skipped}
    assert reasons == {
        "pair/5": "picture 5 is damaged",
        "long": "the prompt is too long; shorten it by its end",
    }


def test_targets_that_are_cached_and_pictures_that_are_not_share_a_part(pipeline: Any) -> None:
    """Each slot keeps its own draws, whichever way its target came."""
    stream = Stream([(runs.Pairs(bad=0), 1.0)], seed=0)
    images = [stream[slot].example.image for slot in range(4)]
    encoded = pipeline.parts.encoder.encode(pipeline.parts.encoder.prepare(images))

    class Half:
        def __getitem__(self, slot: int) -> Sample:
            sample = stream[slot]
            if slot % 2 == 0:
                return sample
            target = {name: tokens[slot : slot + 1] for name, tokens in encoded.items()}
            blind = replace(sample.example, image=None)
            return replace(sample, example=blind, target=target)

    def losses(source: Any, slots: tuple[int, ...]) -> Any:
        part = Batches(source, pipeline, 4, 1, World())[1].parts[0]
        assert part.slots == slots
        return pipeline(part.batch, part.generators(0, torch.device("cpu")))["loss"]

    torch.testing.assert_close(losses(Half(), (1, 3, 0, 2)), losses(stream, (0, 1, 2, 3)))


def test_nothing_usable_is_a_stand_in_that_weighs_nothing(pipeline: Any) -> None:
    class Nothing:
        def example(self, index: int, epoch: int = 0) -> Any:
            raise SampleError(f"nothing/{index}", "gone")

    stream = Stream([(Nothing(), 1.0)], seed=0)
    part = Batches(stream, pipeline, 4, 1, World())[1].parts[0]
    assert part.slots == ()
    assert len(part.skipped) == 4
    losses = pipeline(part.batch, part.generators(0, torch.device("cpu")))
    assert losses["loss"].isfinite()


def test_batches_that_workers_prepare_are_the_same(pipeline: Any) -> None:
    here, there = (list(batches(pipeline, 4).steps(2, 4, workers=n)) for n in (0, 1))
    assert [step.number for step in there] == [2, 3, 4]
    for one, other in zip(here, there, strict=True):
        assert one.parts[0].slots == other.parts[0].slots
        assert torch.equal(one.parts[0].batch["image"], other.parts[0].batch["image"])


def test_encoded_targets_take_the_place_of_pictures(pipeline: Any) -> None:
    class Encoded:
        def __getitem__(self, slot: int) -> Sample | Skipped:
            target = {
                g.name: torch.full((1, g.num_tokens, g.dim), slot) for g in stubs.STREAM.groups
            }
            return Sample(slot, runs.Example(runs.Prompt("x")), target)

    batch = Batches(Encoded(), pipeline, 3, 1, World())[2].parts[0].batch  # type: ignore[arg-type]
    assert set(batch) == {"prompt", "target"}
    assert batch["target"]["cls"][:, 0, 0].tolist() == [3, 4, 5]
