"""What the command shows: tables of what is installed, and progress of what is running."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from modalign.contract import groups, pair_rows
from modalign.recipe import Frozen, Ref
from modalign.registry import KINDS, SINGULAR, Registry
from modalign.specs import EncoderSpec, GeneratorSpec, Progress, ProgressCallback, SpaceMap
from modalign.tokens import TokenStreamSpec

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPED_WIDTH = 120  # a pipe has no width of its own


def show_installed(registry: Registry) -> None:
    """Print a table per kind, then what failed to load and what is claimed twice."""
    for kind in KINDS:
        entries = getattr(registry.catalogue, kind)
        if not entries:
            continue
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column(SINGULAR[kind], style="bold", no_wrap=True)
        table.add_column("what it is")
        table.add_column("from", style="dim", no_wrap=True)
        for name, entry in sorted(entries.items()):
            table.add_row(name, entry.summary, registry.owners[kind, name])
        _print(table)
        _print()
    for owner, why in registry.failures.items():
        _print(f"plugin {owner} failed to load: {why}")
    for (kind, name), owners in registry.conflicts.items():
        _print(f"{SINGULAR[kind]} {name} is claimed by {' and '.join(owners)}; neither is used")


def show_entry(kind: str, entry: Any) -> None:
    """Print one catalogue entry: what it states about itself, field by field."""
    table = Table(box=None, show_header=False, pad_edge=False, title_justify="left")
    table.title = f"{SINGULAR[kind]} [bold]{entry.name}[/bold]"
    table.title_style = ""
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for field, value in vars(entry).items():
        text = describe(value)
        if field != "name" and text and not callable(value):
            table.add_row(field.replace("_", " "), text)
    _print(table)
    _print()


def show_pair(encoder: EncoderSpec, generator: GeneratorSpec, maps: Iterable[SpaceMap]) -> None:
    """Print the contract of a pair: what the encoder makes beside what the generator reads."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    table.add_column(f"encoder {encoder.name}")
    table.add_column(f"generator {generator.name}")
    for what, left, right in pair_rows(encoder, generator, maps):
        table.add_row(what, left, right)
    _print(table)


def describe(value: Any) -> str:
    """A value of a recipe or a spec in words; empty if it says nothing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, TokenStreamSpec):
        return f"{value.space}: {groups(value)}"
    if isinstance(value, Ref):
        options = describe(value.options)
        return f"{value.name} ({options})" if options else value.name
    if isinstance(value, Frozen):
        value = dict(value)
    if isinstance(value, Mapping):
        said = {name: describe(inner) for name, inner in value.items()}
        return ", ".join(f"{name} {text}" for name, text in said.items() if text)
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return str(value)


@contextmanager
def stages() -> Iterator[ProgressCallback]:
    """A callback that shows a bar per stage on the error stream, if that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:

        def report(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.total)
            bars.update(tasks[progress.stage], completed=progress.step, total=progress.total)

        yield report


def _print(content: RenderableType = "") -> None:
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    Console(width=width, highlight=False).print(content, markup=False, soft_wrap=False)
