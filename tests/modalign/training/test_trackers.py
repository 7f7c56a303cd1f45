"""What is written about a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from modalign.errors import ModalignError, OutputError
from modalign.training.trackers import JSONLines, TensorBoard, dashboards


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    log = JSONLines(tmp_path / "log.jsonl")
    log._file.close()
    log._file = Path("/dev/full").open("a")
    with pytest.raises(OutputError, match="cannot write .*log.jsonl: No space left on device"):
        log.log(1, {"loss": 0.5})
    with pytest.raises(OutputError, match="No space left"):  # what is left is tried again
        log.close()
