"""The suite `end-to-end`: prompts nobody trained on, meshes judged for family and colours."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from modalign import GenerationError, Mesh, ModalignError, Pipeline, Recipe
from modalign.evaluation import (
    Report,
    Results,
    Row,
    Table,
    Values,
    assembled,
    fingerprint,
    unconditional,
)
from modalign.specs import ProgressCallback

from . import judge
from .alignment import encode, sampling
from .judge import Judge, NothingToJudge
from .world import Pairs, Toy, pairs

PROMPTS = 200
SPLIT = "compositional"
COLUMNS = ("family", "main colour", "second colour", "family and main", "all three")

INTRODUCTION = (
    "Prompts: the first short caption of objects 0, 1, ... of the split `compositional`, whose "
    "pairs of family and main colour never occur in training. Each names family, main colour, "
    "second part and its colour. Object i has seed i.",
    "Rows. Recipes: text to mesh. `real tokens`: the generator on the encoder's tokens of the "
    "object's picture. `unconditional`: the generator on tokens that the first recipe makes "
    "without a prompt. `true mesh`: the object itself; what it lacks to 100 % is the judge's "
    "error.",
    "The judge sees the mesh only. Family: the one of the nearest of "
    f"{judge.PER_FAMILY} true training objects per family, by the symmetric distance of surface "
    f"cells on a {judge.RESOLUTION}^3 grid (at most {judge.FARTHEST} cells), after centring the "
    "bounding box and scaling its longest side to 1. Colours: points uniform on the outer surface "
    "(walls of enclosed cavities left out) belong to the nearest part of that object and vote for "
    "the nearest palette colour, separately for its main and second part. No mesh, or one without "
    "any area, counts as wrong.",
)

Make = Callable[[int], Any]


def run(
    recipe: Recipe,
    output: Path,
    *,
    limit: int | None = None,
    progress: ProgressCallback | None = None,
    weights: Mapping[str, Path] | None = None,
) -> str:
    """Generate, judge and count; returns the report as Markdown.

    Raises:
        ModalignError: the generator makes something else than meshes; or as
            `evaluation.assembled`.
    """
    found = assembled(recipe, weights=weights)
    count = min(PROMPTS, limit or PROMPTS)
    data = pairs("asset", SPLIT, views=1)
    jury = Judge(data.world)
    results = Results(output / "samples.jsonl")
    measured: dict[str, list[Values]] = {}
    # Fingerprints first: parts that load or remember something when used look different then.
    rows = [
        Row(name, fingerprint(*parts), judged(make, jury, data))
        for name, (make, parts) in makers(found.pipelines, recipe, data).items()
    ]
    for row in rows:
        measured[row.name] = results.complete(row, count, progress)
        text = _report(recipe, measured, found.missing).write(output)
    return text


def makers(
    pipelines: Mapping[str, Pipeline], recipe: Recipe, data: Pairs
) -> dict[str, tuple[Make, tuple[Any, ...]]]:
    """By row: how mesh i is made, and what it depends on."""
    own = pipelines[recipe.name]
    generator = own.parts.generator

    def from_text(pipeline: Pipeline) -> Make:
        def make(index: int) -> Any:
            return pipeline.generate(prompt_of(data, index), seed=index)[0]

        return make

    def from_picture(index: int) -> Any:
        stream = encode(own.parts.encoder, [data.example(index)])
        return generator.generate(own.parts.connect(stream), seed=index)[0]

    def from_nothing(index: int) -> Any:
        stream = unconditional(own, [index])
        return generator.generate(own.parts.connect(stream), seed=index)[0]

    rows: dict[str, tuple[Make, tuple[Any, ...]]] = {"true mesh": (true_mesh(data), ())}
    if generator is not None:
        rows["real tokens"] = (from_picture, (own.parts.encoder, generator))
        rows[recipe.name] = (from_text(own), (own, own.parts.vlm, generator, *sampling(own)))
        rows["unconditional"] = (from_nothing, (own, generator, *sampling(own)))
    for name, pipeline in pipelines.items():
        if name != recipe.name and pipeline.parts.generator is not None:
            parts = (pipeline, pipeline.parts.vlm, pipeline.parts.generator, *sampling(pipeline))
            rows[name] = (from_text(pipeline), parts)
    return rows


def prompt_of(data: Pairs, index: int) -> str:
    """The prompt of sample `index`."""
    return data.world.captions(index, SPLIT)[0]


def true_mesh(data: Pairs) -> Make:
    """Makes the world's own meshes."""

    def make(index: int) -> Mesh:
        vertices, faces, colors = data.world.object(index, SPLIT).mesh()
        return Mesh(vertices, faces, colors)

    return make


def judged(make: Make, jury: Judge, data: Pairs) -> Callable[[range], Iterable[Values]]:
    """Measures samples: what was asked, what the mesh shows, and the seconds it took to make."""

    def measure(window: range) -> Iterable[Values]:
        for index in window:
            asked = wanted(data.world.object(index, SPLIT))
            start = time.perf_counter()
            try:
                mesh = make(index)
                if not isinstance(mesh, Mesh):
                    raise ModalignError(
                        "the suite end-to-end judges meshes, and what was made is no mesh but "
                        f"{type(mesh).__name__}; use --suite alignment"
                    )
                seconds = round(time.perf_counter() - start, 3)
                seen: Any = {"seconds": seconds} | vars(jury(mesh))
            except (GenerationError, NothingToJudge) as error:
                seen = {"error": str(error)}
            yield {"prompt": prompt_of(data, index), "asked": asked, "seen": seen}

    return measure


def wanted(toy: Toy) -> dict[str, str | None]:
    """The truth about an object, in the words of a verdict."""
    second = toy.second
    return {
        "family": toy.family,
        "color": toy.color,
        "second": None if second is None else second.color,
    }


def shares(results: list[Values]) -> dict[str, float]:
    """Percentages of samples that are right, and the mean seconds per mesh."""
    right = [
        {key: result["seen"].get(key) == asked for key, asked in result["asked"].items()}
        for result in results
    ]
    counts = {
        "family": sum(r["family"] for r in right),
        "main colour": sum(r["color"] for r in right),
        "second colour": sum(r["second"] for r in right),
        "family and main": sum(r["family"] and r["color"] for r in right),
        "all three": sum(all(r.values()) for r in right),
    }
    seconds = [r["seen"]["seconds"] for r in results if "seconds" in r["seen"]]
    found = {name: 100 * number / len(results) for name, number in counts.items()}
    found["no mesh"] = 100 * (1 - len(seconds) / len(results))
    return found | ({"seconds": sum(seconds) / len(seconds)} if seconds else {})


def _report(
    recipe: Recipe, measured: Mapping[str, list[Values]], missing: Mapping[str, str]
) -> Report:
    rows = {name: shares(results) for name, results in measured.items()}
    count = len(next(iter(measured.values())))
    table = Table(
        title=f"Right meshes in %, {count} prompts",
        columns=[*COLUMNS, "no mesh", "seconds"],
        rows=rows,
        digits=1,
        notes=[
            "Chance is 3.6 % for the family and 8.3 % for a colour. `seconds` is wall time per "
            "mesh, alone on the machine or not."
        ],
    )
    left_out = [f"Not measured: `{name}` ({why})." for name, why in missing.items()]
    return Report(f"end-to-end: {recipe.name}", [*INTRODUCTION, *left_out], [table])
