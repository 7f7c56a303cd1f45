"""The `modalign` command: a few verbs. Errors a user can cause are one line and exit code 2."""

from __future__ import annotations

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
    prompt: Annotated[str, typer.Argument(help="What to make, in words.")],
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
) -> None:
    """Make a 3-D asset, with a picture of it beside it, or a picture, from a sentence."""
    from modalign.assembly import build, produced
    from modalign.files import output_paths, preview_path, read_image, save_all
    from modalign.specs import Progress, Prompt
    from modalign.terminal import stages

    if not prompt.strip():
        raise PromptError("the prompt is empty; describe what to make")
    targets = output_paths(output, num_samples, inputs=image or (), produces=produced(recipe))
    asked = Prompt(prompt, tuple(read_image(path) for path in image or ()))
    replaced = {target for target in targets if target.exists()}

    with stages() as report:
        report(Progress("loading", 0, 1))
        pipeline = build(recipe, weights=checkpoint or "pretrained", device=usable(device))
        report(Progress("loading", 1, 1))
        assets = pipeline.generate(
            asked,
            seed=seed,
            num_samples=num_samples,
            num_inference_steps=steps,
            guidance_scale=guidance,
            progress=report,
        )
    save_all(assets, targets)
    for target in targets:
        note = "  (replaced)" if target in replaced else ""
        written = [str(path) for path in (target, preview_path(target)) if path is not None]
        typer.echo(f"{'  '.join(written)}{note}")


@app.command(name="list")
def list_installed() -> None:
    """Show what is installed: recipes and every kind of part."""
    from modalign.registry import installed
    from modalign.terminal import show_installed

    show_installed(installed())


@app.command()
def info(name: Annotated[str, typer.Argument(help="A recipe or part.")]) -> None:
    """Show what a name stands for: numbers, layout, origin and licence of each part."""
    from modalign.registry import installed
    from modalign.terminal import show_entry

    registry = installed()
    for kind, entry in registry.find(name):
        show_entry(kind, entry)
        if kind == "recipes":
            for part_kind, part in entry.parts().items():
                if part in getattr(registry.catalogue, part_kind):
                    show_entry(part_kind, registry.get(part_kind, part))
                else:
                    typer.echo(f"{part!r} is not installed\n")


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


@plugin_app.command(name="check")
def plugin_check(
    name: Annotated[str, typer.Argument(help="An encoder, VLM or generator.")],
) -> None:
    """Run the contract checks on a registered part, with random weights."""
    from modalign import testing
    from modalign.registry import SINGULAR, installed

    checks: dict[str, Callable[[Any], None]] = {
        "encoders": testing.check_encoder,
        "vlms": testing.check_vlm,
        "generators": testing.check_generator,
    }
    found = installed().find(name)
    if not any(kind in checks for kind, _ in found):
        raise ModalignError(
            f"{name!r} is a {SINGULAR[found[0][0]]}; only encoders, vlms and generators have "
            "a contract to check"
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


def main() -> None:
    """Run the command; an error a user can cause is one line, and exit code 2."""
    try:
        app()
    except ModalignError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:  # outside typer's own reach: while it starts or ends
        sys.exit(130)


if __name__ == "__main__":
    main()
