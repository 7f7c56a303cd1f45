"""`modalign list`, `info` and `plugin check`: what is installed, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from modalign.errors import ModalignError


def list_installed(
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Which encoders drive which generators, as Markdown.")
    ] = False,
) -> None:
    """Show what is installed: recipes and every kind of part."""
    from modalign.contract import matrix
    from modalign.registry import installed
    from modalign.terminal import show_installed

    registry = installed()
    if not pairs:
        show_installed(registry)
        return
    known = registry.catalogue
    table = matrix(known.vlms, known.encoders, known.generators, known.space_maps.values())
    typer.echo(table, nl=False)


def info(
    name: Annotated[str, typer.Argument(help="A recipe or part.")],
    generator: Annotated[
        str | None, typer.Argument(help="With an encoder before it: the contract of the pair.")
    ] = None,
) -> None:
    """Show what a name stands for, or what an encoder and a generator must agree on."""
    from modalign.registry import installed
    from modalign.terminal import show_entry, show_pair

    registry = installed()
    maps = registry.catalogue.space_maps.values()
    if generator is not None:
        pair = registry.get("encoders", name), registry.get("generators", generator)
        show_pair(*pair, maps)
        return
    for kind, entry in registry.find(name):
        show_entry(kind, entry)
        if kind != "recipes":
            continue
        found = {}
        for part_kind, part in entry.parts().items():
            if part in getattr(registry.catalogue, part_kind):
                found[part_kind] = registry.get(part_kind, part)
                show_entry(part_kind, found[part_kind])
            else:
                typer.echo(f"{part!r} is not installed\n")
        if {"encoders", "generators"} <= set(found):
            show_pair(found["encoders"], found["generators"], maps)


def plugin_check(
    name: Annotated[str, typer.Argument(help="An encoder, VLM, generator or space map.")],
) -> None:
    """Run the contract checks on a registered part, with random weights."""
    from modalign import testing
    from modalign.registry import SINGULAR, installed

    checks: dict[str, Callable[[Any], None]] = {
        "encoders": testing.check_encoder,
        "vlms": testing.check_vlm,
        "generators": testing.check_generator,
        "space_maps": testing.check_space_map,
    }
    found = installed().find(name)
    if not any(kind in checks for kind, _ in found):
        raise ModalignError(
            f"{name!r} is a {SINGULAR[found[0][0]]}; only encoders, vlms, generators and space "
            "maps have a contract to check"
        )
    for kind, entry in found:
        if kind in checks:
            try:
                checks[kind](entry)
            except AssertionError as error:
                raise ModalignError(
                    f"{SINGULAR[kind]} {name!r} breaks the contract: {error}"
                ) from error
            typer.echo(f"{SINGULAR[kind]} {name}: contract kept")
