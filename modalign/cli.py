"""The `modalign` command: a few verbs. Errors a user can cause are one line and exit code 2."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modalign.errors import ModalignError, OutputError, PromptError

if TYPE_CHECKING:
    from PIL.Image import Image

    from modalign.specs import Asset, ProgressCallback

app = typer.Typer(
    name="modalign",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Let any vision-language model drive any frozen, image-conditioned generator.",
)
plugin_app = typer.Typer(no_args_is_help=True, help="Work with plugins.")
app.add_typer(plugin_app, name="plugin")

MAX_PIXELS = 64_000_000  # a decoded RGB picture of this size takes 192 MB
MIN_SIDE = 8  # below this there is nothing to see for any encoder


def say(text: str) -> None:
    """Print for a person; piped output stays plain."""
    typer.echo(text)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to make, in words.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write: .glb, .ply or .obj.")
    ] = Path("output.glb"),
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A picture the prompt refers to.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A registered recipe.")] = "gap3d-mini",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Trained weights to use instead of the recipe's own.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same result.")] = 0,
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
    """Make a 3-D asset from a sentence, and a picture of four views beside it."""
    targets = output_paths(output, num_samples)
    images = tuple(read_image(path) for path in image or ())
    if not prompt.strip():
        raise PromptError("the prompt is empty; describe what to make")

    from modalign.assembly import build
    from modalign.specs import Prompt

    with stages() as progress:
        progress.note("loading")
        pipeline = build(recipe, weights=checkpoint or "pretrained", device=check_device(device))
        assets = pipeline.generate(
            Prompt(prompt, images),
            seed=seed,
            num_samples=num_samples,
            num_inference_steps=steps,
            guidance_scale=guidance,
            progress=progress.report,
        )
        progress.note("saving")
        for asset, target in zip(assets, targets, strict=True):
            save_pair(asset, target)
    for target in targets:
        say(f"{target}  {target.with_suffix('.png')}")


@app.command(name="list")
def list_installed() -> None:
    """Show what is installed: recipes and every kind of part."""
    from rich.console import Console
    from rich.table import Table

    from modalign.registry import KINDS, installed

    registry = installed()
    console = Console()
    for kind in KINDS:
        entries = getattr(registry.catalogue, kind)
        if not entries:
            continue
        table = Table(title=kind.replace("_", " "), title_justify="left", show_edge=False)
        table.add_column("name", style="bold", no_wrap=True)
        table.add_column("what it is")
        table.add_column("from", style="dim", no_wrap=True)
        for name, entry in sorted(entries.items()):
            table.add_row(name, entry.summary, registry.owners[kind, name])
        console.print(table)
        console.print()
    for owner, why in registry.failures.items():
        say(f"plugin {owner} failed to load: {why}")


@app.command()
def info(name: Annotated[str, typer.Argument(help="A recipe or part.")]) -> None:
    """Show what a name stands for: numbers, layout, origin and licence of each part."""
    from modalign.registry import installed

    registry = installed()
    for kind, entry in registry.find(name):
        describe(kind, entry)
        if kind == "recipes":
            for part_kind, part in (
                ("vlms", entry.vlm),
                ("encoders", entry.encoder),
                ("objectives", entry.objective.name),
                ("generators", entry.generator),
            ):
                if part is not None:
                    describe(part_kind, registry.get(part_kind, part))


def describe(kind: str, entry: Any) -> None:
    """Print one catalogue entry as a table."""
    from rich.console import Console
    from rich.table import Table

    from modalign.recipe import Recipe
    from modalign.registry import SINGULAR

    table = Table(title=f"{SINGULAR[kind]} {entry.name}", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    if isinstance(entry, Recipe):
        rows = entry.model_dump(exclude={"name"})
    else:
        rows = {key: value for key, value in vars(entry).items() if key != "name"}
    for key, value in rows.items():
        if callable(value) or value in ("", None, ()):
            continue
        if hasattr(value, "groups"):
            layout = ", ".join(
                f"{group.name} {'x'.join(map(str, group.shape)) or '1'} of {group.dim}"
                for group in value.groups
            )
            value = f"{value.space}: {layout}"
        if isinstance(value, dict):
            value = ", ".join(f"{inner}={got}" for inner, got in value.items())
        table.add_row(
            key, ", ".join(value) if isinstance(value, tuple) and key == "requires" else str(value)
        )
    Console().print(table)


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
    """Run an evaluation suite; it can be stopped and started again."""
    from modalign.registry import installed

    registry = installed()
    chosen = registry.get("suites", suite)
    folder = output or Path("runs") / "bench" / recipe / suite
    with stages() as progress:
        report = chosen.run(
            registry.get("recipes", recipe), folder, limit=limit, progress=progress.report
        )
    say(report)
    say(f"written to {folder}")


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
    for kind, entry in installed().find(name):
        if kind in checks:
            try:
                checks[kind](entry)
            except AssertionError as error:
                raise ModalignError(
                    f"{SINGULAR[kind]} {name!r} breaks the contract: {error}"
                ) from error
            say(f"{SINGULAR[kind]} {name}: contract kept")


def output_paths(output: Path, num_samples: int) -> list[Path]:
    """Where each sample goes: the path itself, or numbered siblings for several.

    Raises:
        OutputError: the extension is unknown, or the folder cannot be written.
    """
    from modalign.assets import FORMATS

    if output.suffix.lower() not in FORMATS:
        raise OutputError(
            f"cannot write {output.name!r}: unknown extension {output.suffix!r}; "
            f"use one of {', '.join(FORMATS)}"
        )
    folder = output.parent
    if output.is_dir():
        raise OutputError(f"cannot write {output}: it is a folder")
    if not folder.is_dir():
        raise OutputError(
            f"cannot write {output}: folder {str(folder)!r} does not exist; create it"
        )
    try:
        # `os.access` says yes to root on a read-only disk; making a file tells.
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write into {str(folder)!r}: {error.strerror}") from error
    if num_samples == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{k}") for k in range(num_samples)]


def read_image(path: Path) -> Image:
    """An RGB picture of sane size, its first frame if it is animated.

    Raises:
        PromptError: it cannot be read, or its size makes no sense as a prompt.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise PromptError(f"no image at {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                width, height = opened.size
                if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
                    raise PromptError(
                        f"image {path} is {width}x{height}; expected at least "
                        f"{MIN_SIDE}x{MIN_SIDE} and at most {MAX_PIXELS:,} pixels; resize it"
                    )
                opened.seek(0)
                upright = ImageOps.exif_transpose(opened)
                if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                    # Generators of this kind were trained on objects on black.
                    cut = upright.convert("RGBA")
                    black = Image.new("RGBA", cut.size, (0, 0, 0, 255))
                    return Image.alpha_composite(black, cut).convert("RGB")
                return upright.convert("RGB")
    except UnidentifiedImageError as error:
        raise PromptError(f"image {path} is not a picture that can be read") from error
    except Image.DecompressionBombError as error:
        raise PromptError(
            f"image {path} is too large; expected at most {MAX_PIXELS:,} pixels; resize it"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise PromptError(f"image {path} is damaged: {error}") from error


def check_device(device: str) -> str:
    """`device`, if this torch can use it.

    Raises:
        ModalignError: it cannot.
    """
    import torch

    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.partition(":")[0], False):
        usable = ", ".join(name for name, there in available.items() if there)
        raise ModalignError(f"device {device!r} is not available here; use one of: {usable}")
    return device


def save_pair(asset: Asset, target: Path) -> None:
    """The asset and its preview, both whole or neither.

    Raises:
        OutputError: the disk refused.
    """
    picture = target.with_suffix(".png")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".modalign-") as folder:
            asset.save(Path(folder) / target.name)
            asset.preview(Path(folder) / picture.name)
            os.replace(Path(folder) / target.name, target)
            os.replace(Path(folder) / picture.name, picture)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error


class stages:  # noqa: N801  (used as a context manager, like contextlib's)
    """A progress bar per stage on the error stream; silent when that is not a terminal."""

    def __enter__(self) -> stages:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        self._bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for task in self._tasks.values():
            self._bars.stop_task(task)
        self._bars.stop()

    def note(self, stage: str) -> None:
        """Begin a stage that has no steps."""
        self._tasks.setdefault(stage, self._bars.add_task(stage, total=None))

    @property
    def report(self) -> ProgressCallback:
        """The callback to hand to a pipeline."""

        def update(progress: Any) -> None:
            if progress.stage not in self._tasks:
                for task in self._tasks.values():
                    self._bars.stop_task(task)
                self._tasks[progress.stage] = self._bars.add_task(
                    progress.stage, total=progress.total
                )
            self._bars.update(self._tasks[progress.stage], completed=progress.step)

        return update


def main() -> None:
    """Run the command; an error a user can cause is one line, and exit code 2."""
    try:
        app()
    except ModalignError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
