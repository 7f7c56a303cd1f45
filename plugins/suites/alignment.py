"""The suite `alignment`: generated tokens of held-out toys against real ones, and baselines."""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from modalign import Pipeline, Progress, Prompt, Recipe, TokenStream
from modalign.evaluation import (
    Gallery,
    NearestText,
    Report,
    Results,
    Row,
    Values,
    assembled,
    fingerprint,
    stage_effects,
    unconditional,
)
from modalign.specs import ProgressCallback, TargetEncoder

from .world import Pairs, pairs

# Scenes tell what the second stage costs; fewer of them are enough for that.
SAMPLES = {"asset": 1000, "scene": 250}
TRAINING_PAIRS = 8000
VIEWS = 2
BATCH = 16

INTRODUCTION = (
    "Held-out objects (split `test`, object i has seed i), one picture and one short caption each, "
    "of the object alone. Predictions are compared with the encoder's tokens of that picture, "
    "token by token; every sample counts once.",
    "Rows. Recipes: sampled from the caption as the recipe says. `unconditional`: the first recipe "
    "without any prompt. `nearest caption`: real tokens of the training picture whose caption is "
    "most similar (TF-IDF over words). `real, other view`: real tokens of the same object from "
    "another camera: what not knowing the view costs. `real`: the compared tokens themselves. A "
    "recipe that puts tokens back on their manifold has norm ratio 1 by construction.",
)


def run(
    recipe: Recipe,
    output: Path,
    *,
    limit: int | None = None,
    progress: ProgressCallback | None = None,
    weights: Mapping[str, Path] | None = None,
    training_pairs: int = TRAINING_PAIRS,
) -> str:
    """Measure a recipe and its variants on both domains; returns the report as Markdown."""
    found = assembled(recipe, generator=False, weights=weights)
    results = Results(output / "samples.jsonl")
    measured: dict[str, dict[str, list[Values]]] = {}
    galleries: dict[str, Gallery] = {}
    for domain, number in SAMPLES.items():
        count = min(number, limit or number)
        bench = Bench(domain, count, found.pipelines[recipe.name].parts.encoder, progress)
        galleries[domain] = bench.gallery
        measured[domain] = {}
        for name, row in bench.rows(found.pipelines, recipe.name, training_pairs).items():
            measured[domain][name] = results.complete(row, count, progress)
            text = _report(recipe, galleries, measured, found.missing).write(output)
    return text


class Bench:
    """Held-out pairs of one domain and everything that is compared with their real tokens."""

    def __init__(
        self, domain: str, count: int, encoder: TargetEncoder, progress: ProgressCallback | None
    ) -> None:
        self.domain, self.encoder = domain, encoder
        self.pairs = pairs(domain, "test", views=VIEWS)
        self.prompts: list[Prompt] = []
        windows: list[TokenStream] = []
        for start in range(0, count, BATCH):
            window = range(start, min(start + BATCH, count))
            examples = [self.pairs.example(VIEWS * index) for index in window]
            self.prompts += [Prompt(caption(self.pairs, "test", index)) for index in window]
            windows.append(encode(encoder, examples))
            if progress is not None:
                progress(Progress(f"encoding, {domain}", window.stop, count))
        self.gallery = Gallery({name: torch.cat([w[name] for w in windows]) for name in windows[0]})

    def rows(
        self, pipelines: Mapping[str, Pipeline], first: str, training_pairs: int
    ) -> dict[str, Row]:
        """Rows by their name in the tables."""
        own = pipelines[first]
        # Ranks depend on the gallery: another number of samples is another measurement.
        against = (self.gallery.stream, len(self.gallery))

        @cache
        def training() -> tuple[Pairs, NearestText]:
            known = pairs(self.domain, "train", views=1)
            texts = [caption(known, "train", index) for index in range(training_pairs)]
            return known, NearestText(texts)

        def generated(pipeline: Pipeline) -> Any:
            def measure(window: range) -> Iterable[Values]:
                asked = self.prompts[window.start : window.stop]
                return self.gallery.compare(pipeline.align(asked, seed=window.start), window)

            return measure

        def without(window: range) -> Iterable[Values]:
            return self.gallery.compare(unconditional(own, window), window)

        def nearest(window: range) -> Iterable[Values]:
            seen, search = training()
            texts = [prompt.text for prompt in self.prompts[window.start : window.stop]]
            examples = [seen.example(index) for index in search(texts)]
            return self.gallery.compare(encode(self.encoder, examples), window)

        def other_view(window: range) -> Iterable[Values]:
            examples = [self.pairs.example(VIEWS * index + 1) for index in window]
            return self.gallery.compare(encode(self.encoder, examples), window)

        def itself(window: range) -> Iterable[Values]:
            real = {name: t[window.start : window.stop] for name, t in self.gallery.stream.items()}
            return self.gallery.compare(real, window)

        def row(name: str, measure: Any, *parts: Any) -> Row:
            version = fingerprint(*against, *parts)
            return Row(f"{name}, {self.domain}", version, measure, BATCH)

        return {
            "unconditional": row("unconditional", without, own, *sampling(own)),
            "nearest caption": row("nearest caption", nearest, training_pairs),
            "real, other view": row("real, other view", other_view),
            "real": row("real", itself),
            **{
                name: row(name, generated(one), one, one.parts.vlm, *sampling(one))
                for name, one in pipelines.items()
            },
        }


def caption(data: Pairs, split: str, index: int) -> str:
    """One short caption of object `index`, the first for object 0, and so on in turn."""
    captions = data.world.captions(index, split)
    return captions[index % len(captions)]


def sampling(pipeline: Pipeline) -> tuple[Any, ...]:
    """What of a recipe decides over samples, beside the weights."""
    return pipeline.recipe.flow, pipeline.recipe.sampler


def encode(encoder: TargetEncoder, examples: Iterable[Any]) -> TokenStream:
    """Real tokens of examples' pictures, on the CPU."""
    stream = encoder.encode(encoder.prepare([example.image for example in examples]))
    return {name: tokens.float().cpu() for name, tokens in stream.items()}


def _report(
    recipe: Recipe,
    galleries: Mapping[str, Gallery],
    measured: Mapping[str, Mapping[str, list[Values]]],
    missing: Mapping[str, str],
) -> Report:
    tables = [
        table
        for domain, gallery in galleries.items()
        for table in gallery.tables(measured[domain], domain)
    ]
    left_out = [f"Not measured: `{name}` ({why})." for name, why in missing.items()]
    return Report(
        title=f"alignment: {recipe.name}",
        introduction=[*INTRODUCTION, *left_out],
        tables=[*tables, stage_effects(measured)],
    )
