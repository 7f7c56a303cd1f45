"""The `modalign` command: a few verbs. Errors a user can cause are one line and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from modalign import __version__
from modalign.errors import ModalignError, PromptError

app = typer.Typer(
    name="modalign",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Let any vision-language model drive any frozen, image-conditioned generator.",
)
plugin_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Work with plugins.")
app.add_typer(plugin_app, name="plugin")
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at data.")
app.add_typer(data_app, name="data")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"modalign {__version__}")
        raise typer.Exit


@app.callback()
def command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Let any vision-language model drive any frozen, image-conditioned generator."""


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to make, in words.")] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write: .glb, .ply or .obj for meshes, .png, .jpg or .webp for pictures.",
        ),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A picture the prompt refers to.")
    ] = None,
    from_image: Annotated[
        Path | None,
        typer.Option(
            "--from-image",
            help="Instead of a prompt: a picture of the object, best a cut-out with transparency.",
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="A registered recipe.")] = "gap3d-mini",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Trained weights to use instead of the recipe's own.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Same seed, same result.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Steps of the alignment sampler.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0.0, max=100.0, help="Guidance scale; 1 is off.")
    ] = None,
    num_samples: Annotated[
        int, typer.Option(min=1, max=64, help="How many to make, from seeds seed, seed+1, ...")
    ] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    turntable: Annotated[
        Path | None,
        typer.Option(help="Beside the output, a film of one turn: .gif, .webp, .png or .mp4."),
    ] = None,
) -> None:
    """Make a 3-D asset, with its picture beside it, or a picture, from a sentence or a picture."""
    from modalign.assembly import build, pair
    from modalign.files import (
        output_paths,
        preview_path,
        read_image,
        read_picture,
        save_all,
        turntable_paths,
    )
    from modalign.fitting import produced
    from modalign.registry import installed
    from modalign.specs import Progress, Prompt
    from modalign.terminal import stages

    if from_image is not None:
        of_prompts: dict[str, Any] = {"a prompt": prompt, "--image": image}
        of_prompts |= {"--checkpoint": checkpoint, "--steps": steps, "--guidance": guidance}
        given = [name for name, value in of_prompts.items() if value not in (None, "", [])]
        if given:
            raise PromptError(f"--from-image stands for a prompt; leave out {', '.join(given)}")
    elif not prompt.strip():
        raise PromptError("the prompt is empty; describe what to make")
    registry = installed()
    made = produced(recipe, registry)
    inputs = [*(image or ()), *([from_image] if from_image else ())]
    targets = output_paths(output, num_samples, inputs=inputs, produces=made)
    films = turntable_paths(turntable, targets, inputs, produces=made)
    picture = None if from_image is None else read_picture(from_image)
    asked = Prompt(prompt, tuple(read_image(path) for path in image or ()))
    replaced = {target for target in targets if target.exists()}

    with stages() as report:
        report(Progress("loading", 0, 1))
        if picture is not None:
            parts = registry.get("recipes", recipe).parts()
            direct = pair(
                parts["encoders"], parts["generators"], device=usable(device), registry=registry
            )
            report(Progress("loading", 1, 1))
            assets = direct.generate([picture] * num_samples, seed=seed, progress=report)
        else:
            pipeline = build(
                recipe,
                weights=checkpoint or "pretrained",
                device=usable(device),
                registry=registry,
            )
            report(Progress("loading", 1, 1))
            assets = pipeline.generate(
                asked,
                seed=seed,
                num_samples=num_samples,
                num_inference_steps=steps,
                guidance_scale=guidance,
                progress=report,
            )
        save_all(assets, targets, films, report)
    for number, target in enumerate(targets):
        note = "  (replaced)" if target in replaced else ""
        beside = [preview_path(target), *films[number : number + 1]]
        written = [str(path) for path in (target, *beside) if path is not None]
        typer.echo(f"{'  '.join(written)}{note}")


@app.command(name="list")
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


@app.command()
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


@app.command()
def bench(
    recipe: Annotated[str, typer.Argument(help="A registered recipe.")] = "gap3d-mini",
    suite: Annotated[str, typer.Option(help="A registered suite.")] = "alignment",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the results.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Fewer samples than the suite's own number.")
    ] = None,
) -> None:
    """Run an evaluation suite; stopped, it continues where it was when started again."""
    from modalign.registry import installed, missing_modules
    from modalign.terminal import stages

    registry = installed()
    chosen = registry.get("suites", suite)
    missing = missing_modules(chosen.requires)
    if missing:
        raise ModalignError(
            f"suite {suite!r} needs {', '.join(missing)}, which cannot be imported here; "
            "for built-in suites: pip install modalign[eval]"
        )
    folder = output or Path("runs") / "bench" / recipe / suite
    with stages() as progress:
        report = chosen.run(registry.get("recipes", recipe), folder, limit=limit, progress=progress)
    typer.echo(report)
    typer.echo(f"written to {folder}")


@app.command()
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
        place = usable(device or ("cuda" if _has_cuda() else "cpu"))
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


@app.command()
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
    from modalign.checkpoint import is_checkpoint, load_checkpoint, save_checkpoint
    from modalign.conversion import empty_head, read_released, write_released
    from modalign.errors import OutputError
    from modalign.registry import installed

    registry = installed()
    back = is_checkpoint(source)
    if not back and target.suffix != ".safetensors":
        raise OutputError(f"cannot write {target.name!r}: a checkpoint ends in .safetensors")
    if not back and frozen is not None:
        raise ModalignError(f"--frozen completes a released folder, but {source} is one already")
    checkpoint = load_checkpoint(source) if back else None
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


@app.command()
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


@data_app.command(name="check")
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


@plugin_app.command(name="check")
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


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def usable(device: str) -> str:
    """`device`, if this torch can use it.

    Raises:
        ModalignError: it cannot.
    """
    import torch

    there = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    if torch.cuda.is_available():
        there.append("cuda")
    if torch.backends.mps.is_available():
        there.append("mps")
    if device not in there:
        raise ModalignError(
            f"device {device!r} is not available here; use one of: {', '.join(there)}"
        )
    return device


def shown(error: ModalignError) -> str:
    """The line that says what went wrong, and in which process if torchrun started several."""
    rank = os.environ.get("RANK", "0")
    return f"error: {error}" if rank == "0" else f"error in process {rank}: {error}"


def main() -> None:
    """Run the command; an error a user can cause is one line, and exit code 2."""
    try:
        app()
    except ModalignError as error:
        typer.echo(shown(error), err=True)
        sys.exit(2)
    except KeyboardInterrupt:  # outside typer's own reach: while it starts or ends
        sys.exit(130)


if __name__ == "__main__":
    main()
