"""Results of single samples, kept as they are found, so that a suite can be stopped at any time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.errors import OutputError
from modalign.specs import Progress, ProgressCallback

Values = Mapping[str, Any]
"""What is known about one sample, as JSON content."""


@dataclass(frozen=True)
class Row:
    """A row of a suite's tables: something that is measured on samples 0, 1, 2, ...

    Args:
        name: of the row, unique within the suite.
        version: changes whenever the same sample would give other results.
        measure: results of samples `window`, in order; must not depend on how windows are cut.
        batch_size: the longest window.
    """

    name: str
    version: str
    measure: Callable[[range], Iterable[Values]]
    batch_size: int = 1


class Results:
    """A file of JSON lines, one per row and sample; the last line of a sample counts.

    Results of another version are never used. A line that a killed process left unfinished is
    skipped, and its sample measured again.

    Raises:
        OutputError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[tuple[str, str], dict[int, Values]] = {}
        self._whole = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text() if path.exists() else ""
        except OSError as error:
            raise OutputError(f"cannot keep results in {path}: {error.strerror}") from error
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                key, index, values = (
                    (entry["row"], entry["version"]),
                    entry["index"],
                    entry["values"],
                )
            except (ValueError, TypeError, KeyError):
                continue
            self._known.setdefault(key, {})[index] = values
        self._whole = not text or text.endswith("\n")

    def of(self, row: Row) -> Mapping[int, Values]:
        """What is known about a row, by sample."""
        return self._known.get((row.name, row.version), {})

    def complete(
        self, row: Row, count: int, progress: ProgressCallback | None = None
    ) -> list[Values]:
        """Results of samples 0 ... count - 1: those known, and the others measured now."""
        known = self._known.setdefault((row.name, row.version), {})
        missing = [index for index in range(count) if index not in known]
        done = count - len(missing)
        for window in windows(missing, row.batch_size):
            _report(progress, row.name, done, count)
            for index, values in zip(window, row.measure(window), strict=True):
                self._append(row, index, values)
                known[index] = values
                done += 1
        _report(progress, row.name, done, count)
        return [known[index] for index in range(count)]

    def _append(self, row: Row, index: int, values: Values) -> None:
        entry = {"row": row.name, "index": index, "version": row.version, "values": values}
        try:
            with self.path.open("a") as file:
                file.write(("" if self._whole else "\n") + json.dumps(entry) + "\n")
        except OSError as error:
            raise OutputError(f"cannot keep results in {self.path}: {error.strerror}") from error
        self._whole = True


def windows(indices: Iterable[int], longest: int) -> Iterator[range]:
    """Rising indices as runs without gaps, of up to `longest`."""
    window: range | None = None
    for index in indices:
        if window is not None and index == window.stop and len(window) < longest:
            window = range(window.start, index + 1)
            continue
        if window is not None:
            yield window
        window = range(index, index + 1)
    if window is not None:
        yield window


def _report(progress: ProgressCallback | None, stage: str, step: int, total: int) -> None:
    if progress is not None:
        progress(Progress(stage, step, total))
