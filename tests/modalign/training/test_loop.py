"""Whole runs of the stub recipe in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from modalign import build, pair
from modalign.data.stream import Stream
from modalign.errors import BuildError
from modalign.recipe import TrainingConfig
from modalign.training.batches import Batches
from modalign.training.showing import SIDE, Showing
from modalign.training.snapshots import Piece, Snapshot
from modalign.training.spread import spread
from modalign.training.start import untrained
from modalign.training.state import State
from modalign.training.watching import Watch
from modalign.training.world import StopSignal, World
from tests.modalign import stubs
from tests.modalign.training import runs


@pytest.fixture
def pipeline() -> Any:
    return build("stub", weights="untrained", registry=stubs.registry())


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


def test_recomputing_blocks_changes_no_bit(pipeline: Any) -> None:
    stream = Stream([(runs.Pairs(), 1.0)], seed=0)
    part = Batches(stream, pipeline, 4, 1, World())[1].parts[0]

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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_compiled_blocks_compute_the_same_losses(pipeline: Any) -> None:
    """A compiler may order sums otherwise: to 1e-5."""
    stream = Stream([(runs.Pairs(), 1.0)], seed=0)
    part = Batches(stream, pipeline, 4, 1, World())[1].parts[0]
    losses = []
    for compiled in (False, True):
        spread(pipeline, TrainingConfig(compile=compiled), World())
        found = pipeline(part.batch, part.generators(0, torch.device("cpu")))
        losses.append(found["loss"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_run_is_watched_on_a_fixed_set_and_trains_the_same(tmp_path: Path) -> None:
    """Evaluating draws nothing that training uses, and sees the weights that are exported."""
    runs.run(tmp_path / "plain")
    watched = {"evaluate": "pairs?bad=0", "evaluate_every": 4, "evaluate_pictures": 3}
    runs.run(tmp_path / "watched", **watched)
    assert runs.same(tmp_path / "plain", tmp_path / "watched")
    content = (tmp_path / "watched" / "log.jsonl").read_text().splitlines()
    found = [row for row in map(json.loads, content) if "eval/cls_cosine" in row]
    assert [row["step"] for row in found] == [4, 8, 9]
    known = runs.registry()
    trained = build("stub", weights=tmp_path / "watched" / "model.safetensors", registry=known)
    examples = [runs.Pairs(bad=0).example(index) for index in range(32)]
    showing = Showing(pair("stub-encoder", "stub-generator", registry=known), examples[:3])
    again = Watch(trained, examples, showing)(trained.trainable())
    sheet = again.pop("generated")
    for name, value in again.items():
        assert found[-1][f"eval/{name}"] == value
    drawn = sorted((tmp_path / "watched" / "pictures").iterdir())
    assert [path.name for path in drawn] == [
        f"eval-generated-0000000{step}.png" for step in (4, 8, 9)
    ]
    with Image.open(drawn[-1]) as last:
        assert np.array_equal(np.asarray(last), sheet)
    stream = trained.align([example.prompt for example in examples[:16]], seed=0)
    for k in range(3):  # mesh k is what `generate` makes of prompt k, seen from its first side
        (mesh,) = stubs.Generator().generate({"cls": stream["cls"][k : k + 1]}, seed=k)
        cell = sheet[SIDE : 2 * SIDE, k * SIDE : (k + 1) * SIDE]
        assert np.array_equal(cell, mesh.render(1, SIDE)[0])
        assert (sheet[:SIDE, k * SIDE : (k + 1) * SIDE] == examples[k].image[0, 0, 0]).all()


def test_a_run_that_is_stopped_saves_and_does_not_look_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking takes minutes at full size; who sends SIGTERM kills after seconds."""
    monkeypatch.setattr(StopSignal, "asked", lambda self: True)
    watched = {"evaluate": "pairs?bad=0", "evaluate_every": 4}
    assert runs.run(tmp_path / "run", **watched) == 1
    assert (tmp_path / "run" / "checkpoints" / "step-00000001").is_dir()
    assert "eval/" not in (tmp_path / "run" / "log.jsonl").read_text()
