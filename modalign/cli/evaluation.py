"""`modalign bench`: a recipe is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modalign.errors import ModalignError


def bench(
    recipe: Annotated[str, typer.Argument(help="A registered recipe.")] = "gap3d-mini",
    suite: Annotated[str, typer.Option(help="A registered suite.")] = "alignment",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the results.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Fewer samples than the suite's own number.")
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH: trained weights of the recipe or a variant of it."),
    ] = None,
) -> None:
    """Run an evaluation suite; stopped, it continues where it was when started again."""
    from modalign.registry import installed, missing_modules
    from modalign.terminal import stages

    weights: dict[str, Path] = {}
    for text in checkpoint or ():
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ModalignError(f"--checkpoint {text!r} names no file; write {recipe}=PATH")
        weights[name] = Path(path)
    registry = installed()
    chosen = registry.get("suites", suite)
    missing = missing_modules(chosen.requires)
    if missing:
        raise ModalignError(
            f"suite {suite!r} needs {', '.join(missing)}, which cannot be imported here; "
            "for built-in suites: pip install modalign[eval]"
        )
    folder = output or Path("runs") / "bench" / recipe / suite
    asked: dict[str, Any] = {"limit": limit}
    if weights:
        asked["weights"] = weights
    with stages() as progress:
        report = chosen.run(registry.get("recipes", recipe), folder, progress=progress, **asked)
    typer.echo(report)
    typer.echo(f"written to {folder}")
