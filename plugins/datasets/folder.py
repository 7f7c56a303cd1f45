"""A folder of pictures with captions beside them, or in one table."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from modalign import DatasetSpec, Example, Prompt, SampleError, hookimpl
from modalign.data import Background, drawn, picture

PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
TABLES = ("captions.jsonl", "metadata.jsonl", "metadata.csv", "captions.csv")
COLUMNS = ("text", "caption", "captions")


class Entry(NamedTuple):
    """A picture below the folder and its captions; or `problem`, what is wrong with its row."""

    file: str
    captions: Any = None
    problem: str | None = None


class Folder:
    """The pictures of a folder, in the order of their names or of a table.

    A table is one of `captions.jsonl`, `metadata.jsonl`, `metadata.csv` and `captions.csv`, with
    `file_name` and `text`, `caption` or `captions`; the last may be a list, of which one is drawn
    per epoch. Without a table each picture, in sub-folders too, has a .txt of its name beside it.

    Args:
        path: the folder.
        seed: of the draws.
        background: what transparent pictures show.
    """

    def __init__(self, path: str, *, seed: int = 0, background: Background = "black") -> None:
        """Names and tables are read at once; pictures and texts when they are asked for.

        Raises:
            ValueError: there is no such folder, or nothing in it.
        """
        self.root = Path(path)
        if not self.root.is_dir():
            raise ValueError(f"no folder at {path}")
        self.seed, self.background = seed, background
        tables = [self.root / name for name in TABLES if (self.root / name).is_file()]
        self.entries = list(_table(tables[0]) if tables else _texts(self.root))
        if not self.entries:
            raise ValueError(
                f"no sample in {path}; expected pictures with a .txt beside each, or a table: "
                f"{', '.join(TABLES)}"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def example(self, index: int, epoch: int = 0) -> Example:
        """Picture `index` and a caption of it."""
        prompt = self.prompt_only(index, epoch)
        file = self.root / self.entries[index].file
        return Example(
            prompt.prompt,
            picture(file, prompt.identifier, self.background),
            identifier=prompt.identifier,
        )

    def prompt_only(self, index: int, epoch: int = 0) -> Example:
        """A caption of picture `index`, which is not read."""
        entry = self.entries[index]
        name = f"{self.root.name}/{entry.file}"
        if entry.problem:
            raise SampleError(name, entry.problem)
        captions = entry.captions
        if captions is None:
            try:
                captions = (self.root / entry.file).with_suffix(".txt").read_bytes()
            except FileNotFoundError:
                captions = None
            except OSError as error:
                raise SampleError(name, f"the caption cannot be read: {error.strerror}") from error
        text = drawn(captions, name, seed=self.seed, index=index, epoch=epoch)
        return Example(Prompt(text), identifier=name)


def _texts(root: Path) -> Iterator[Entry]:
    """Every picture, and every text without one."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    pictured = {path.with_suffix("") for path in files if path.suffix.lower() in PICTURES}
    for path in files:
        file = path.relative_to(root).as_posix()
        if path.suffix.lower() in PICTURES:
            yield Entry(file)
        elif path.suffix == ".txt" and path.with_suffix("") not in pictured:
            yield Entry(file, problem="there is no picture of this name")


def _table(path: Path) -> Iterator[Entry]:
    """Every row of a table, those that cannot be used too."""
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        table = path.suffix == ".csv"
        rows: Any = enumerate(csv.DictReader(file), 1) if table else _records(file)
        for number, row in rows:
            if row is None:
                yield Entry(f"{path.name}:{number}", problem="the line is no JSON object")
                continue
            name = row.get("file_name")
            if not isinstance(name, str) or not name:
                yield Entry(f"{path.name}:{number}", problem="the row has no file_name")
                continue
            captions = next((row[column] for column in COLUMNS if row.get(column)), "")
            if table and not row.get("text") and not row.get("caption"):
                captions = listed(captions)
            yield Entry(name, captions)


def _records(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Number and object of every line that is not empty, None where it holds none."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        yield number, row if isinstance(row, dict) else None


def listed(text: str) -> Any:
    """A CSV cell that may hold a JSON list."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, list) else text


@hookimpl
def modalign_datasets() -> list[DatasetSpec]:
    """A folder of pictures and captions."""
    return [
        DatasetSpec(
            name="folder",
            summary="a folder of pictures with a .txt beside each, or a table of captions",
            build=Folder,
        )
    ]
