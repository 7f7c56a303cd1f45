"""`modalign generate`: a prompt or a picture becomes files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modalign.cli.devices import usable
from modalign.errors import PromptError


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
    format: Annotated[
        str | None,
        typer.Option(
            help="What to make, where a generator makes several: mesh, textured-mesh, gaussians, "
            "radiance-field."
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
        beside,
        output_paths,
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
    made = produced(recipe, registry, format)
    # A generator of one format alone takes no such option.
    options = {} if made == produced(recipe, registry) else {"format": made}
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
            assets = direct.generate([picture] * num_samples, seed=seed, progress=report, **options)
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
                **options,
            )
        save_all(assets, targets, films, report)
    for number, target in enumerate(targets):
        note = "  (replaced)" if target in replaced else ""
        written = [target, *beside(target, made), *films[number : number + 1]]
        typer.echo(f"{'  '.join(map(str, written))}{note}")
