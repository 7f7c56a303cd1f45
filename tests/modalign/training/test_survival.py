"""What a killed run becomes is compared bit for bit with a run that nobody touched."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from modalign.errors import OutputError, TrainingError
from modalign.training import snapshots
from modalign.training.state import State
from tests.modalign.training import runs

POINTS = [
    ("before the update", 5),
    ("in the middle of a file", 6),
    pytest.param("before the manifest", 6, marks=pytest.mark.slow),
    pytest.param("before old ones are removed", 9, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A finished run of one process, and one of two."""
    folder = tmp_path_factory.mktemp("untouched")
    found = {size: folder / f"run-{size}" for size in (1, 2)}
    for size, path in found.items():
        assert runs.launch(path, size=size) == [0] * size, runs.said(path)
    return found


@pytest.mark.parametrize(("point", "step"), POINTS)
def test_a_killed_run_continues_bit_for_bit(
    tmp_path: Path, untouched: dict[int, Path], point: str, step: int
) -> None:
    folder = tmp_path / "run"
    assert runs.launch(folder, death=(point, step)) == [-signal.SIGKILL]
    assert runs.run(folder) == 9
    assert runs.same(folder, untouched[1])
    assert not list((folder / "checkpoints").glob(".*"))


def test_a_killed_run_of_two_processes_continues_bit_for_bit(
    tmp_path: Path, untouched: dict[int, Path]
) -> None:
    folder = tmp_path / "run"
    codes = runs.launch(folder, size=2, death=("in the middle of a file", 6))
    assert codes[1] == -signal.SIGKILL
    assert runs.launch(folder, size=2) == [0, 0], runs.said(folder)
    assert runs.same(folder, untouched[2])


def test_sigterm_saves_and_the_rest_is_the_same(tmp_path: Path, untouched: dict[int, Path]) -> None:
    folder = tmp_path / "run"
    assert runs.launch(folder, death=("asked to stop", 4)) == [0]
    assert (folder / "checkpoints" / "step-00000004").is_dir()
    assert not (folder / "model.safetensors").exists()
    assert "the same command continues" in (folder / "log.jsonl").read_text()
    assert runs.run(folder) == 9
    assert all(
        torch.equal(tensor, runs.weights(untouched[1])[name])
        for name, tensor in runs.weights(folder).items()
    )


def require_close(first: Path, second: Path) -> None:
    """Weights up to the order of sums: measured after nine steps, within 3e-6, of up to 2.3.

    But for the one bias that is added to all keys alike, which no softmax sees: its gradient is
    rounding, and Adam makes steps of any size out of it.
    """
    one, other = runs.weights(first), runs.weights(second)
    assert one.keys() == other.keys()
    for name in one.keys() - {"head.condition_encoder.context.0.norm_k.bias"}:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5, msg=name)


def test_two_processes_compute_what_one_does(untouched: dict[int, Path]) -> None:
    """Noise, times and drops are the samples' own. Losses agree to 3e-7 of themselves, measured."""
    require_close(untouched[1], untouched[2])
    for first, second in zip(runs.rows(untouched[1]), runs.rows(untouched[2]), strict=True):
        assert first == pytest.approx(second, rel=2e-6)


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_run_continues_on_another_number_of_processes(
    tmp_path: Path, untouched: dict[int, Path], before: int, after: int
) -> None:
    folder = tmp_path / "run"
    assert any(runs.launch(folder, size=before, death=("before the update", 8)))
    assert runs.launch(folder, size=after) == [0] * after, runs.said(folder)
    require_close(folder, untouched[1])


@pytest.mark.slow
@pytest.mark.parametrize("shard", [1, 2])
def test_replicas_and_shards_compute_the_same(
    tmp_path: Path, untouched: dict[int, Path], shard: int
) -> None:
    """Four processes: as four replicas, and as two replicas of two shards."""
    folder = tmp_path / "run"
    assert runs.launch(folder, size=4, shard=shard) == [0] * 4, runs.said(folder)
    require_close(folder, untouched[1])


@pytest.mark.slow
def test_a_process_without_a_sample_takes_part(tmp_path: Path) -> None:
    """Of two slots per step every sixth is damaged: one process then has none."""
    for size in (1, 2):
        data = {"batch_size": 2, "data": ("pairs?bad=6",)}
        assert runs.launch(tmp_path / f"run-{size}", data, size=size) == [0] * size
    one, two = (runs.rows(tmp_path / f"run-{size}") for size in (1, 2))
    assert {row["samples"] for row in two} == {1.5, 2.0, 1.0}
    for first, second in zip(one, two, strict=True):
        assert first == pytest.approx(second, rel=1e-5)


def test_a_step_without_any_sample_is_left_out(tmp_path: Path) -> None:
    runs.run(tmp_path / "run", {"batch_size": 1, "data": ("pairs?bad=6",)})
    rows = runs.rows(tmp_path / "run")
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1, 1]
    assert {row["samples"] for row in rows} == {1}  # its zeros are in no mean


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert runs.launch(folder, size=2, death=("asked to stop", 4)) == [0, 0], runs.said(folder)
    assert (folder / "checkpoints" / "step-00000005").is_dir()
    assert runs.launch(folder, size=2) == [0, 0]
    assert runs.launch(tmp_path / "untouched", size=2) == [0, 0]
    trained = runs.weights(tmp_path / "untouched")
    assert all(torch.equal(t, trained[name]) for name, t in runs.weights(folder).items())


@pytest.mark.slow
def test_sharded_bfloat16_keeps_float32_weights_and_continues(tmp_path: Path) -> None:
    half = {"precision": "bfloat16"}
    for death in (("before the update", 5), None):
        runs.launch(tmp_path / "run", half, size=2, death=death)
    assert runs.launch(tmp_path / "untouched", half, size=2) == [0, 0]
    assert runs.same(tmp_path / "run", tmp_path / "untouched")
    assert {tensor.dtype for tensor in runs.weights(tmp_path / "run").values()} == {torch.float32}


@pytest.mark.parametrize("damage", ["a bit", "half a file", "the manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, untouched: dict[int, Path], damage: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(untouched[1], folder)
    newest = folder / "checkpoints" / "step-00000009"
    file = newest / "rank-00000.safetensors"
    if damage == "a bit":
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "half a file":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        (newest / "manifest.json").write_text("{")
    assert runs.run(folder) == 9
    assert runs.same(folder, untouched[1])
    notes = [line for line in (folder / "log.jsonl").read_text().splitlines() if "note" in line]
    assert any(f"{newest} is damaged" in note and "one before" in note for note in notes)


def test_a_full_disk_is_one_clear_line_and_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, save = tmp_path / "run", snapshots.save_file

    def full(tensors: Any, path: Path) -> None:
        if "00000006" in str(path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(snapshots, "save_file", full)
    with pytest.raises(
        OutputError, match=r"No space left.*whole one is .*step-00000003.*make room"
    ):
        runs.run(folder)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.undo()
    assert runs.run(folder) == 9


def test_a_file_that_the_system_refuses_ends_with_code_2(tmp_path: Path) -> None:
    """A real refusal: no file may grow beyond 2 kB."""
    folder = tmp_path / "run"
    assert runs.launch(folder, death=("disk full", 2000)) == [2]
    assert runs.said(folder).splitlines()[-1].startswith("error: cannot write")
    assert not list((folder / "checkpoints").iterdir())


def test_old_checkpoints_go_and_kept_ones_have_their_model(tmp_path: Path) -> None:
    runs.run(tmp_path / "run", save_every=1, keep_last=2, keep_every=4)
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == [f"step-0000000{step}" for step in (4, 8, 9)]
    models = sorted(path.name for path in (tmp_path / "run" / "models").iterdir())
    assert models == ["step-00000004.safetensors", "step-00000008.safetensors"]


def poisoned(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    take = State.take

    def spoil(self: State, step: int, *rest: Any) -> Any:
        if step in steps:
            self.parameters["soft_tokens"].grad.fill_(float("nan"))
        return take(self, step, *rest)

    monkeypatch.setattr(State, "take", spoil)


def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, {2})
    kept: list[dict[str, torch.Tensor]] = []
    take = State.take

    def watch(self: State, *rest: Any) -> Any:
        norm = take(self, *rest)
        pieces = self.pieces().items()
        kept.append({n: p.tensor.clone() for n, p in pieces if n.split(".")[0] in WATCHED})
        return norm

    WATCHED = ("weight", "first_moment", "second_moment", "updates")
    monkeypatch.setattr(State, "take", watch)
    runs.run(tmp_path / "run")
    assert all(torch.equal(kept[1][name], tensor) for name, tensor in kept[0].items())
    assert not torch.equal(kept[2]["weight.soft_tokens"], kept[1]["weight.soft_tokens"])
    assert [row["skipped_steps"] for row in runs.rows(tmp_path / "run")] == [1.0] * 5


def test_too_many_such_steps_stop_the_run_and_name_samples_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, {4, 5, 6})
    expected = r"more than 2 steps in a row.*step 6 with pair/40, .*checkpoint is .*step-00000003"
    with pytest.raises(TrainingError, match=expected):
        runs.run(tmp_path / "run", {"max_nonfinite": 2})


def test_no_checkpoint_is_written_of_too_many_such_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Continued, it would only end again."""
    poisoned(monkeypatch, {4, 5, 6})
    with pytest.raises(TrainingError, match="step 6 with pair/40"):
        runs.run(tmp_path / "run", {"max_nonfinite": 2}, log_every=9)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_twenty_kills_change_nothing(tmp_path: Path, size: int) -> None:
    """Sixteen random moments of a run, and four within the write of a checkpoint.

    A run that was done before it could be killed does not count.
    """
    options: dict[str, Any] = {"save_every": 1, "steps": 40, "size": size}
    untouched = tmp_path / "untouched"
    assert runs.launch(untouched, **options) == [0] * size
    draw, killed, tried, survived = random.Random(0), [], 0, 0
    while len(killed) < 20:
        tried += 1
        assert tried <= 40, f"only {len(killed)} of 40 runs were killed before they were done"
        within = {"death": ("in the middle of a file", draw.randint(2, 40))}
        moment = {"kill_at": (draw.randint(0, 39), draw.uniform(0, 0.05))}
        folder = tmp_path / f"run-{tried}"
        codes = runs.launch(folder, **(within if len(killed) % 5 == 4 else moment), **options)
        if codes == [0] * size:
            continue
        assert -signal.SIGKILL in codes
        killed.append(runs.reached(folder))
        assert runs.launch(folder, **options) == [0] * size, runs.said(folder)
        survived += runs.same(folder, untouched)
    print(f"{size} processes: {survived} of {len(killed)}, killed at {killed}")  # noqa: T201
    assert survived == 20
