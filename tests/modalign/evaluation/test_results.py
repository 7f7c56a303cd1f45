"""Results of single samples survive a stop, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from modalign import OutputError, Progress
from modalign.evaluation import Results, Row, Values
from modalign.evaluation.results import windows


def row(seen: list[range], version: str = "1", stop_at: int = 1000) -> Row:
    def measure(window: range) -> Iterator[Values]:
        seen.append(window)
        for index in window:
            if index >= stop_at:
                raise KeyboardInterrupt
            yield {"square": index * index}

    return Row("squares", version, measure, batch_size=3)


def test_a_stopped_row_continues_after_the_last_sample(tmp_path: Path) -> None:
    path = tmp_path / "new" / "samples.jsonl"
    with pytest.raises(KeyboardInterrupt):
        Results(path).complete(row([], stop_at=4), 7)
    seen: list[range] = []
    values = Results(path).complete(row(seen), 7)
    assert [value["square"] for value in values] == [k * k for k in range(7)]
    assert seen == [range(4, 7)]


def test_results_of_another_version_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    Results(path).complete(row([]), 2)
    seen: list[range] = []
    Results(path).complete(row(seen, version="2"), 2)
    assert seen == [range(0, 2)]
    assert list(Results(path).of(row([]))) == [0, 1]


def test_a_line_cut_short_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    Results(path).complete(row([]), 3)
    path.write_text(path.read_text()[:-5])
    seen: list[range] = []
    assert Results(path).complete(row(seen), 3)[2] == {"square": 4}
    assert seen == [range(2, 3)]
    entries = path.read_text().splitlines()
    assert json.loads(entries[-1])["index"] == 2
    assert list(Results(path).of(row([]))) == [0, 1, 2]


def test_more_samples_use_those_already_measured(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    Results(path).complete(row([]), 2)
    seen: list[range] = []
    assert len(Results(path).complete(row(seen), 5)) == 5
    assert seen == [range(2, 5)]
    assert len(Results(path).complete(row(seen), 1)) == 1


def test_progress_starts_where_the_last_run_stopped(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    Results(path).complete(row([]), 4)
    told: list[Progress] = []
    Results(path).complete(row([]), 9, told.append)
    assert [(p.stage, p.step, p.total) for p in told] == [
        ("squares", 4, 9),
        ("squares", 7, 9),
        ("squares", 9, 9),
    ]


def test_windows_are_runs_without_gaps() -> None:
    assert list(windows([], 3)) == []
    found = list(windows([0, 1, 2, 3, 5, 9, 10], 3))
    assert found == [range(0, 3), range(3, 4), range(5, 6), range(9, 11)]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="samples.jsonl"):
        Results(tmp_path / "file" / "samples.jsonl")
