"""One bad sample of every sort in a tar: what a run tells of them, and what they change."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.modalign.training import runs


def picture(shade: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(shade).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


BAD: dict[str, Mapping[str, bytes | None]] = {
    "the picture is damaged": {"png": picture(0, 64)[:700]},
    "no picture that can be read": {"png": b"<html>"},
    "the picture is empty": {"png": b""},
    "the picture is missing": {"png": None},
    "the caption is missing": {"txt": None},
    "the caption is empty": {"txt": b" \n"},
    "the caption is not UTF-8": {"txt": b"caf\xe9"},
    "the JSON is damaged": {"txt": None, "json": b"{"},
    "no object with a caption": {"txt": None, "json": b"[1]"},
    "the prompt is too long": {"txt": b"x" * 101},  # for the language model: found in collate
    "the tar ends within the picture": {},
}
SIZE = 72  # one epoch of nine steps of eight
PLACES = {str(1 + 7 * number): reason for number, reason in enumerate(list(BAD)[:-1])}
PLACES[str(SIZE - 1)] = list(BAD)[-1]


def tar(path: Path, bad: Mapping[str, str]) -> Path:
    """Samples 0 to 71; those in `bad` have that reason to be left out."""
    with tarfile.open(path, "w") as file:
        for number in range(SIZE):
            members: dict[str, bytes | None] = {"txt": b"picture %d" % number}
            members["png"] = picture(number, 64 if number == SIZE - 1 else 8)
            for extension, content in (
                members | dict(BAD.get(bad.get(str(number), ""), {}))
            ).items():
                if content is not None:
                    info = tarfile.TarInfo(f"{number}.{extension}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
        end = file.offset
    if str(SIZE - 1) in bad:
        path.write_bytes(path.read_bytes()[: end - 1024])
    return path


def told(folder: Path) -> list[tuple[int, str]]:
    content = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(row["step"], row["note"]) for row in content if "left out" in row.get("note", "")]


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bad_samples_are_told_of_once_each_and_leave_only_their_slots_empty(
    tmp_path: Path, size: int
) -> None:
    """Killed on the way, too. The other run has good samples there, but its slots are empty."""
    bad = {"data": (f"webdataset?path={tar(tmp_path / 'bad.tar', PLACES)}",)}
    good = tar(tmp_path / "good.tar", {})
    holes = "&".join(f"hole={place}" for place in PLACES)
    options = {"save_every": 2, "log_every": 3}
    run, empty = tmp_path / "run", tmp_path / "empty"
    codes = runs.launch(run, bad, size=size, death=("before the update", 6), **options)
    assert any(codes)
    assert runs.launch(run, bad, size=size, **options) == [0] * size, runs.said(run)
    data = {"data": (f"holes?path={good}&{holes}",)}
    assert runs.launch(empty, data, size=size, **options) == [0] * size, runs.said(empty)

    assert runs.same(run, empty)
    notes = told(run)
    names = [note.split("/")[-1].split(" ")[0] for _, note in notes]
    assert sorted(names) == sorted(PLACES)  # each once
    for name, (_, note) in zip(names, notes, strict=True):
        assert note.startswith(f"sample {tmp_path.name}/bad.tar/{name} was left out: ")
        assert PLACES[name] in note
    steps = [step for step, _ in notes]
    assert [step for step, _ in told(empty)] == steps == sorted(steps)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    counts = {row["step"]: row["skipped_samples"] for row in rows if "loss" in row}
    assert counts == {last: sum(step <= last for step in steps) for last in (3, 6, 9)}
    assert counts[9] == len(BAD)


@pytest.mark.slow
def test_processes_and_workers_tell_of_the_same_samples_in_the_same_order(tmp_path: Path) -> None:
    bad = {"data": (f"webdataset?path={tar(tmp_path / 'bad.tar', PLACES)}",)}
    for size, workers in ((1, 0), (2, 0), (1, 2)):
        folder = tmp_path / f"run-{size}-{workers}"
        assert runs.launch(folder, bad, size=size, workers=workers) == [0] * size
        assert told(folder) == told(tmp_path / "run-1-0")
