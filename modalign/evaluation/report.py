"""Tables of results, as JSON for programs and Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.assets import write_whole
from modalign.errors import OutputError

Cell = float | None


@dataclass(frozen=True)
class Table:
    """Numbers by row and column; a cell that is missing or None is shown as a dash.

    `digits` are those after the point, `notes` are paragraphs below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Mapping[str, Cell]]
    digits: int = 3
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """The table with its title and notes."""
        lines = [
            f"## {self.title}",
            "",
            f"| | {' | '.join(self.columns)} |",
            f"|---|{'---:|' * len(self.columns)}",
        ]
        for name, values in self.rows.items():
            cells = (self._cell(values.get(column)) for column in self.columns)
            lines.append(f"| {name} | {' | '.join(cells)} |")
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines)

    def _cell(self, value: Cell) -> str:
        if value is None:
            return "–"
        return f"{value:.{self.digits}f}"


@dataclass(frozen=True)
class Report:
    """What a suite found. `introduction` are paragraphs that say what was measured, and how."""

    title: str
    introduction: Sequence[str]
    tables: Sequence[Table]

    def markdown(self) -> str:
        """The whole report."""
        parts = [
            f"# {self.title}",
            *self.introduction,
            *(table.markdown() for table in self.tables if table.rows),
        ]
        return "\n\n".join(parts) + "\n"

    def content(self) -> dict[str, Any]:
        """The report as JSON content, numbers unrounded."""
        return {
            "title": self.title,
            "introduction": list(self.introduction),
            "tables": [
                {
                    "title": table.title,
                    "columns": list(table.columns),
                    "rows": {name: dict(values) for name, values in table.rows.items()},
                    "notes": list(table.notes),
                }
                for table in self.tables
                if table.rows
            ],
        }

    def write(self, folder: Path) -> str:
        """Write `report.json` and `report.md` into `folder`; returns the Markdown.

        Raises:
            OutputError: they cannot be written.
        """
        text = self.markdown()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = json.dumps(self.content(), indent=1) + "\n"
            write_whole(folder / "report.json", content.encode())
            write_whole(folder / "report.md", text.encode())
        except OSError as error:
            raise OutputError(f"cannot write the report into {folder}: {error.strerror}") from error
        return text
