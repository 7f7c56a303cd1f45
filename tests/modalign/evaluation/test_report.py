"""Tables for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modalign import OutputError
from modalign.evaluation import Report, Table

TABLE = Table(
    "Squares", ["small", "large"], {"ours": {"small": 0.12345, "large": None}}, 2, ["A note."]
)


def test_markdown_shows_rounded_numbers_and_a_dash_for_nothing() -> None:
    assert TABLE.markdown().splitlines() == [
        "## Squares",
        "",
        "| | small | large |",
        "|---|---:|---:|",
        "| ours | 0.12 | – |",
        "",
        "A note.",
    ]


def test_json_keeps_every_digit(tmp_path: Path) -> None:
    empty = Table("Empty", ["a"], {})
    text = Report("Numbers", ["How."], [TABLE, empty]).write(tmp_path / "new")
    assert text == (tmp_path / "new" / "report.md").read_text()
    assert text.startswith("# Numbers\n\nHow.\n\n## Squares")
    assert "Empty" not in text
    (table,) = json.loads((tmp_path / "new" / "report.json").read_text())["tables"]
    assert table["rows"] == {"ours": {"small": 0.12345, "large": None}}
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "report.json",
        "report.md",
    ]


def test_an_unwritable_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="report"):
        Report("Numbers", [], []).write(tmp_path / "file" / "folder")
