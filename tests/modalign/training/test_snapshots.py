"""Checkpoints to continue from, without a run around them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modalign.errors import WeightsError
from modalign.training.snapshots import Piece, Snapshot, Snapshots


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


def test_what_is_no_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """As somebody's copy under another name."""
    for name in ("step-00000002", "step-00000010", "step-00000500.bak", "step-"):
        (tmp_path / name).mkdir()
    assert Snapshots(tmp_path).steps() == [2, 10]


def test_a_save_holds_the_values_of_its_moment(tmp_path: Path) -> None:
    """The copy is taken at once; what happens while the disk writes is not in it."""
    store, weight = Snapshots(tmp_path), torch.zeros(1000)
    store.save(1, {"a": Piece(weight, (1000,))})
    weight.fill_(1)
    store.finish()
    found = torch.ones(1000)
    Snapshot(store.path(1)).fill({"a": Piece(found, (1000,))})
    assert found.eq(0).all()
