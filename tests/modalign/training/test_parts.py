"""What the loop is made of, piece by piece."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from modalign import build
from modalign.data.stream import Sample, Skipped, Stream
from modalign.errors import BuildError, ModalignError, OutputError, RegistryError, WeightsError
from modalign.recipe import TrainingConfig
from modalign.training.batches import Batches, slot_seed
from modalign.training.run import seeded
from modalign.training.schedule import learning_rate
from modalign.training.snapshots import Piece, Snapshot, Snapshots
from modalign.training.sources import parse, sources
from modalign.training.spread import spread
from modalign.training.start import changed, number_of_steps, untrained
from modalign.training.state import State
from modalign.training.trackers import JSONLines, TensorBoard, dashboards
from modalign.training.world import World
from tests.modalign import stubs
from tests.modalign.training import runs


def batches(pipeline: Any, batch_size: int, accumulation: int = 1, **place: int) -> Batches:
    stream = Stream([(runs.Pairs(), 1.0)], seed=0)
    return Batches(stream, pipeline, batch_size, accumulation, World(**place))


@pytest.fixture
def pipeline() -> Any:
    return build("stub", weights="untrained", registry=stubs.registry())


def test_rates_are_those_of_transformers_one_step_on() -> None:
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    config = TrainingConfig(lr=0.5, min_lr=0.1, warmup=0.15)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 6, 40, min_lr=config.min_lr)
    for step in range(1, 41):
        optimizer.step()
        theirs.step()
        assert learning_rate(step, 40, config) == pytest.approx(theirs.get_last_lr()[0])
    assert learning_rate(40, 40, config) == pytest.approx(config.min_lr)


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
        def example(self, index: int) -> Any:
            example = super().example(index)
            if index != 2:
                return example
            return runs.Example(runs.Prompt("x" * 101), example.image, identifier="long")

    stream = Stream([(LongTenth(), 1.0)], seed=0)
    step = next(Batches(stream, pipeline, 8, 1, World()).steps(1, 1))
    assert step.parts[0].slots == (0, 1, 3, 4, 6, 7)
    reasons = {skip.identifier: skip.reason for skip in step.skipped}
    assert reasons == {
        "slot 5": "picture 5 is damaged",
        "long": "the prompt is too long; shorten it by its end",
    }


def test_nothing_usable_is_a_stand_in_that_weighs_nothing(pipeline: Any) -> None:
    class Nothing:
        def example(self, index: int) -> Any:
            raise ValueError("gone")

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


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_steps_that_do_not_log_never_wait_for_the_device(tmp_path: Path) -> None:
    """With rows every 9 steps nothing is read in all nine steps but once, at the last."""
    counts = {}
    for log_every in (9, 1):
        asked = runs.plan(tmp_path / f"run-{log_every}", log_every=log_every, save_every=100)
        with Waits() as waits:
            runs.start(asked, runs.registry(asked.recipe))
        counts[log_every] = waits.count
    per_row = (counts[1] - counts[9]) / 8
    assert per_row >= 2  # that it counts at all: the rows, and the counts of steps left out
    assert counts[9] == counts[1] - 8 * per_row
    with Waits() as waits:
        plain = runs.plan(tmp_path / "setup", save_every=100)
        untrained(plain, runs.registry(plain.recipe), World())
    assert counts[9] - waits.count <= per_row + 2  # the export's fingerprint reads a few more


def test_what_a_start_draws_follows_from_the_seed_and_leaves_the_global_state() -> None:
    before = torch.random.get_rng_state()
    with seeded(3):
        first = torch.randn(4)
    with seeded(3):
        again = torch.randn(4)
    assert torch.equal(first, again)
    assert torch.equal(before, torch.random.get_rng_state())


def test_rows_written_by_two_are_read_by_three(tmp_path: Path) -> None:
    whole = torch.arange(35.0).view(7, 5)
    number = torch.tensor(3.0)
    writers = [Snapshots(tmp_path, rank=rank, size=2) for rank in range(2)]
    for writer, (start, stop) in zip(writers, [(0, 4), (4, 7)], strict=True):
        pieces = {"a": Piece(whole[start:stop], (7, 5), start), "b": Piece(number, ())}
        writer.save(1, pieces)
    for writer in writers:
        writer.finish()
    snapshot = Snapshot(writers[0].path(1))
    snapshot.verify()
    for start, stop in [(0, 3), (3, 6), (6, 7), (7, 7)]:
        piece = Piece(torch.zeros(stop - start, 5), (7, 5), start)
        other = Piece(torch.zeros(()), ())
        snapshot.fill({"a": piece, "b": other})
        assert torch.equal(piece.tensor, whole[start:stop])
        assert other.tensor == 3


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    store = Snapshots(tmp_path)
    store.save(1, {"a": Piece(torch.zeros(2), (2,))})
    store.finish()
    with pytest.raises(WeightsError, match=r"has a as \(2,\), expected \(3,\)"):
        Snapshot(store.path(1)).fill({"a": Piece(torch.zeros(3), (3,))})


def test_a_save_holds_the_values_of_its_moment(tmp_path: Path) -> None:
    """The copy is taken at once; what happens while the disk writes is not in it."""
    store, weight = Snapshots(tmp_path), torch.zeros(1000)
    store.save(1, {"a": Piece(weight, (1000,))})
    weight.fill_(1)
    store.finish()
    found = torch.ones(1000)
    Snapshot(store.path(1)).fill({"a": Piece(found, (1000,))})
    assert found.eq(0).all()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("toybox", ("toybox", {}, 1.0)),
        ("toybox:0.25", ("toybox", {}, 0.25)),
        ("toybox?domain=asset&views=4:3", ("toybox", {"domain": "asset", "views": 4}, 3.0)),
        ("tars?path=s3://x/a.tar", ("tars", {"path": "s3://x/a.tar"}, 1.0)),
    ],
)
def test_a_data_spec_has_a_name_options_and_a_ratio(spec: str, expected: Any) -> None:
    assert parse(spec) == expected


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("toybox:0", "mixing ratio 0; expected one above 0"),
        ("toybox?views", "'views' is no option; write key=value"),
        ("pairs?bat=3", r"refuses \{'bat': 3\}: .*unexpected keyword"),
    ],
)
def test_a_data_spec_that_says_nothing_is_refused(spec: str, said: str) -> None:
    with pytest.raises(ModalignError, match=said):
        sources([spec.replace("toybox", "pairs")], runs.registry())


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RegistryError, match="pairs"):
        sources(["pears"], runs.registry())


def test_rows_after_the_step_a_run_continues_from_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = JSONLines(path, step=2)
    log.log(3, {"loss": 0.5})
    log.note(3, "so it is")
    log.picture(3, "a mug", np.zeros((2, 3, 3), dtype=np.uint8))
    log.close()
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert kept[:4] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "loss": 0.5},
        {"step": 3, "note": "so it is"},
    ]
    assert (tmp_path / kept[4]["file"]).read_bytes().startswith(b"\x89PNG")


def test_tensorboard_has_what_was_logged(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    board = TensorBoard(tmp_path)
    board.log(4, {"loss": 0.5})
    board.picture(4, "mug", np.zeros((2, 3, 3), dtype=np.uint8))
    board.close()
    found = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(4, 0.5)]
    assert found.Images("mug")[0].step == 4


def test_a_dashboard_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModalignError, match="no tracker 'comet'; use one of tensorboard, wandb"):
        dashboards(("comet",), tmp_path, 0)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModalignError, match="pip install wandb"):
        dashboards(("wandb",), tmp_path, 0)
    assert dashboards((), tmp_path, 0) == []


def test_the_folder_of_another_run_is_refused_field_by_field(tmp_path: Path) -> None:
    runs.plan(tmp_path).claim()
    runs.plan(tmp_path, {"accumulation": 2, "compile": True}).claim()  # the same run, elsewhere
    expected = "seed is 0 there, 1 here; steps is 9 there, 4 here"
    with pytest.raises(ModalignError, match=f"training.lr is 0.01 there, 0.02 here; {expected}"):
        runs.plan(tmp_path, {"lr": 0.02}, seed=1, steps=4).claim()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write into .*file/run: Not a directory"):
        runs.plan(tmp_path / "file" / "run").claim()


def test_a_run_starts_from_a_file(tmp_path: Path) -> None:
    file = stubs.checkpoint(tmp_path / "stub.safetensors")
    found = {}
    for start in (None, file):
        asked = runs.plan(tmp_path / "run", start=start)
        found[start] = untrained(asked, runs.registry(asked.recipe), World())
    stored = build("stub", weights=file, registry=stubs.registry())
    assert torch.equal(found[file].soft_tokens, stored.soft_tokens)
    assert not torch.equal(found[None].soft_tokens, stored.soft_tokens)
    with pytest.raises(WeightsError, match="no checkpoint at .*none.safetensors to start from"):
        runs.plan(tmp_path / "run", start=tmp_path / "none.safetensors")


def test_the_length_of_a_run_is_said_or_follows_from_the_data() -> None:
    class Sized(runs.Pairs):
        def __len__(self) -> int:
            return 20

    recipe = runs.RECIPE.derive(training={"steps": None, "epochs": 3})
    assert number_of_steps(recipe, [(Sized(), 1.0)]) == 3 * 20 // 8
    with pytest.raises(ModalignError, match="no end; say how long: --steps N"):
        number_of_steps(recipe, [(runs.Pairs(), 1.0)])


def test_fields_are_set_by_dotted_name() -> None:
    recipe = changed(runs.RECIPE, ["training.lr=0.5", "training.data=[]", "summary=mine"])
    assert (recipe.training.lr, recipe.training.data, recipe.summary) == (0.5, (), "mine")
    for change, expected in [
        ("training.lrr=1", "training.lrr: Extra inputs"),
        ("training.lr=-1", "training.lr: Input should be greater than 0"),
        ("name.x=1", "write field=value"),
        ("training.lr", "write field=value"),
    ]:
        with pytest.raises(ModalignError, match=expected):
            changed(runs.RECIPE, [change])


def test_compiling_and_recomputing_blocks_change_no_loss(pipeline: Any) -> None:
    """Recomputing bit for bit; a compiler may order sums otherwise."""
    part = batches(pipeline, 4)[1].parts[0]

    def gradient(**options: Any) -> torch.Tensor:
        spread(pipeline, TrainingConfig(**options), World())
        pipeline.zero_grad()
        pipeline(part.batch, part.generators(0, torch.device("cpu")))["loss"].backward()
        return pipeline.soft_tokens.grad.clone()

    plain = gradient()
    assert torch.equal(gradient(gradient_checkpointing=True), plain)


def test_bfloat16_keeps_weights_and_moments_in_float32(tmp_path: Path) -> None:
    asked = runs.plan(tmp_path / "run", {"precision": "bfloat16"})
    runs.start(asked, runs.registry(asked.recipe))
    stored = Snapshot(tmp_path / "run" / "checkpoints" / "step-00000009")
    pipeline = untrained(asked, runs.registry(asked.recipe), World())
    state = State(pipeline, asked.recipe.training, World())
    assert {piece.tensor.dtype for piece in state.pieces().values()} == {torch.float32}
    assert set(state.pieces()) <= set(stored.shapes)
    plain = runs.plan(tmp_path / "plain")
    runs.start(plain, runs.registry(plain.recipe))
    for half, full in zip(runs.rows(tmp_path / "run"), runs.rows(tmp_path / "plain"), strict=True):
        assert half["loss"] == pytest.approx(full["loss"], rel=0.05)
        assert half["loss"] != full["loss"]


def test_float8_is_refused_without_its_library_or_its_hardware(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(BuildError, match=r"pip install modalign\[fp8\]"):
        spread(pipeline, TrainingConfig(precision="float8"), World())


def test_accumulated_parts_are_the_same_step(tmp_path: Path) -> None:
    for parts in (1, 4):
        runs.run(tmp_path / f"run-{parts}", {"accumulation": parts})
    one, four = (runs.rows(tmp_path / f"run-{parts}") for parts in (1, 4))
    for first, second in zip(one, four, strict=True):
        assert first == pytest.approx(second, rel=1e-5)


def test_the_exported_file_is_the_first_average_and_describes_itself(tmp_path: Path) -> None:
    runs.run(tmp_path / "run")
    stored = Snapshot(tmp_path / "run" / "checkpoints" / "step-00000009")
    average = Piece(torch.zeros(1, 3, 8), (1, 3, 8))
    stored.fill({"average.0.9.soft_tokens": average})
    known = runs.registry()
    loaded = build("stub", weights=tmp_path / "run" / "model.safetensors", registry=known)
    assert torch.equal(loaded.soft_tokens, average.tensor)
    assert loaded.extra["training"] == {
        "steps": 9,
        "data": ["pairs"],
        "seed": 0,
        "ema_decay": 0.9,
    }
    assert loaded.extra["parts"]["generators"]["name"] == "stub-generator"
    assert "fingerprint" in loaded.extra
