"""`modalign encode`, `render` and `data check`: what a recipe learns from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from modalign.cli.devices import usable


def encode(
    name: Annotated[str, typer.Argument(help="An encoder, or a recipe that names one.")],
    data: Annotated[str, typer.Option(help="Whose pictures: NAME or NAME?key=value&key=value.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the cache; continued if it is there.")
    ],
    precision: Annotated[str, typer.Option(help="float16, or int8 at half the size.")] = "float16",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Encode only the first so many samples.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per forward pass.")] = 32,
    threads: Annotated[int, typer.Option(min=1, help="That read and decode ahead.")] = 4,
    weights: Annotated[
        str, typer.Option(help="pretrained, or a path where the encoder takes one.")
    ] = "pretrained",
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
) -> None:
    """Encode the pictures of a data set once; under torchrun every process takes its share."""
    from modalign.data.commands import encode_data
    from modalign.registry import installed
    from modalign.terminal import stages

    with stages() as progress:
        said = encode_data(
            name,
            data,
            output,
            precision=precision,
            limit=limit,
            batch_size=batch_size,
            threads=threads,
            weights=weights,
            device=usable(device),
            registry=installed(),
            progress=progress,
        )
    typer.echo(said)


def render(
    folder: Annotated[Path, typer.Argument(help="Of .glb, .obj and .ply, in sub-folders too.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the pictures; continued if there.")
    ],
    views: Annotated[
        str,
        typer.Option(help="best of four yaws; 4, the best first; or 24 as in TRELLIS's training."),
    ] = "best",
    size: Annotated[int, typer.Option(help="Pixels on a side.")] = 512,
    crop: Annotated[
        bool, typer.Option("--crop", help="Crop to 1.2 times the object, on black.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same pictures.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that draw; one per processor if not given.")
    ] = None,
) -> None:
    """Draw a folder of meshes as training reads them, each from the side that shows most of it."""
    from modalign.data.drawing import render_folder
    from modalign.data.views import ViewPlan
    from modalign.terminal import stages

    plan = ViewPlan(views=views, size=size, crop=crop, seed=seed)
    number = workers if workers is not None else os.cpu_count() or 1
    with stages() as progress:
        found = render_folder(folder, output, plan, workers=number, progress=progress)
    typer.echo(found.text())


def data_check(
    data: Annotated[str, typer.Argument(help="NAME or NAME?key=value&key=value.")],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Read only so many, in the order of training.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A PNG of the first pictures.")
    ] = None,
) -> None:
    """Read data as training would: counts, bad samples by name, captions and pictures."""
    from modalign.data.sources import parse_source
    from modalign.data.surveys import contact_sheet, survey
    from modalign.errors import OutputError
    from modalign.registry import installed
    from modalign.terminal import stages

    if output is not None and output.suffix.lower() != ".png":
        raise OutputError(f"cannot write {output.name!r}: the pictures are shown as .png")
    if output is not None and not output.parent.is_dir():
        raise OutputError(f"cannot write {output}: folder {str(output.parent)!r} does not exist")
    dataset, _ = parse_source(data, installed())
    with stages() as progress:
        found = survey(dataset, limit=limit, progress=progress)
    typer.echo(found.text())
    if output is not None:
        contact_sheet(found, output)
        typer.echo(f"written to {output}")
