"""`modalign train` and `convert`: trained weights, from data or from a release."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from modalign.cli.devices import has_cuda, usable
from modalign.errors import ModalignError


def train(
    recipe: Annotated[str, typer.Argument(help="A registered recipe.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the run; again, it continues there.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME, NAME:RATIO or NAME?key=value&key=value; the recipe's own if none."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps in all.")] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="A checkpoint to start from, file or folder.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field of the recipe, such as training.batch_size=8."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same run.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; cuda where there is one.")
    ] = None,
    shard: Annotated[
        int | None,
        typer.Option(help="Processes that hold one copy together: all if not given, 1 replicates."),
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    keep_last: Annotated[int, typer.Option(min=1, help="Newest checkpoints that stay.")] = 2,
    keep_every: Annotated[
        int, typer.Option(min=0, help="Steps whose multiples stay, with their model; 0 for none.")
    ] = 0,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between rows of the log.")] = 10,
    evaluate: Annotated[
        str | None, typer.Option(help="Data, as in --data, whose first 32 samples are watched.")
    ] = None,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between two looks.")] = 1000,
    evaluate_pictures: Annotated[
        int, typer.Option(min=0, max=16, help="Samples that a look shows as generated assets.")
    ] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare batches.")] = 0,
    track: Annotated[
        list[str] | None, typer.Option(help="tensorboard or wandb; tensorboard if installed.")
    ] = None,
) -> None:
    """Train a recipe, on one process or under torchrun; stopped or killed, the same continues."""
    from modalign.registry import installed
    from modalign.training.start import planned
    from modalign.training.start import start as run
    from modalign.training.world import patient

    with patient():
        registry = installed()
        place = usable(device or ("cuda" if has_cuda() else "cpu"))
        plan = planned(
            registry.get("recipes", recipe),
            registry,
            output,
            data=tuple(data or ()),
            steps=steps,
            start=start,
            changes=tuple(change or ()),
            seed=seed,
            save_every=save_every,
            keep_last=keep_last,
            keep_every=keep_every,
            log_every=log_every,
            evaluate=evaluate,
            evaluate_every=evaluate_every,
            evaluate_pictures=evaluate_pictures,
            workers=workers,
        )
    done = run(plan, registry, device=place, shard=shard, track=tuple(track or ()))
    if done == plan.steps and os.environ.get("RANK", "0") == "0":
        typer.echo(f"written to {plan.model}")


def convert(
    source: Annotated[Path, typer.Argument(help="A released folder or file, or one of ours.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file, or folder, to write.")],
    recipe: Annotated[
        str, typer.Option(help="Which network a released folder holds; ours say it themselves.")
    ] = "gap3d",
    frozen: Annotated[
        Path | None,
        typer.Option(help="Back to a whole folder: where the language model's weights lie."),
    ] = None,
) -> None:
    """Turn what GAP3D's or BLIP3-o's training leaves into one file of modalign, or back."""
    from modalign.assembly import weights_file
    from modalign.checkpoint import is_checkpoint, load_checkpoint, save_checkpoint
    from modalign.conversion import empty_head, read_released, write_released
    from modalign.errors import OutputError
    from modalign.registry import installed

    registry = installed()
    back = is_checkpoint(weights_file(source))
    if not back and target.suffix != ".safetensors":
        raise OutputError(f"cannot write {target.name!r}: a checkpoint ends in .safetensors")
    if not back and frozen is not None:
        raise ModalignError(f"--frozen completes a released folder, but {source} is one already")
    checkpoint = load_checkpoint(weights_file(source)) if back else None
    chosen = checkpoint.recipe if checkpoint else registry.get("recipes", recipe)
    stream = checkpoint.stream if checkpoint else registry.get("encoders", chosen.encoder).stream
    width = registry.get("vlms", chosen.vlm).hidden_dim
    if width is None:
        raise ModalignError(f"vlm {chosen.vlm!r} of recipe {chosen.name!r} was never released")
    head = empty_head(stream, chosen.head, width)
    if checkpoint:
        manifest = write_released(checkpoint, head, target, frozen=frozen)
    else:
        tensors, manifest = read_released(source, head)
        save_checkpoint(target, tensors, chosen, stream, {"converted": source.name})
    typer.echo(manifest)
    typer.echo(f"written to {target}")
