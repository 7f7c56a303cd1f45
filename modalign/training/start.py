"""From names to a run: builds the parts, joins the processes, continues, trains."""

from __future__ import annotations

import json
from collections.abc import Sequence, Sized
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from modalign.assembly import build, described, pair, shipped, weights_file
from modalign.checkpoint import load_trained
from modalign.data.cached import Cached
from modalign.data.sources import parse_source
from modalign.data.stream import Stream
from modalign.errors import ModalignError, WeightsError
from modalign.fingerprint import fingerprint
from modalign.fitting import fit
from modalign.pipeline import Pipeline
from modalign.recipe import Recipe
from modalign.registry import Registry
from modalign.specs import Dataset, Example
from modalign.training.batches import Batches
from modalign.training.loop import train
from modalign.training.report import Report
from modalign.training.run import Run, continued, seeded
from modalign.training.showing import Showing
from modalign.training.snapshots import Snapshots
from modalign.training.spread import spread
from modalign.training.state import State
from modalign.training.trackers import (
    JSONLines,
    ProgressLine,
    Tracker,
    dashboards,
    require_dashboards,
)
from modalign.training.watching import Watch
from modalign.training.world import World, joined

WATCHED = 32  # samples of an evaluation on the way: seconds at any size


def start(
    run: Run,
    registry: Registry,
    *,
    device: str = "cpu",
    shard: int | None = None,
    track: tuple[str, ...] = (),
) -> int:
    """Train `run`, from where it was left if its folder has a checkpoint; returns the last step.

    Under `torchrun` every process calls this. `device` is "cpu" or "cuda", `shard` as for `joined`,
    `track` names dashboards.

    Raises:
        ModalignError: anything that keeps the run from starting, or from going on.
    """
    require_dashboards(track)
    sources = [parse_source(text, registry) for text in run.data]
    stream = Stream(sources, seed=run.seed)
    with joined(device, shard) as world, ExitStack() as closing:
        config, watch = run.recipe.training, None
        with world.together():
            if world.rank == 0:
                run.claim()
                closing.enter_context(run.locked())
            pipeline = untrained(run, registry, world)
            require_caches([dataset for dataset, _ in sources], pipeline)
            batches = Batches(stream, pipeline, config.batch_size, config.accumulation, world)
            if run.workers and not all(isinstance(dataset, Cached) for dataset, _ in sources):
                pipeline.parts.build("encoder")  # here once, not in every worker
            if world.rank == 0:
                watch = watched(run, registry, pipeline)
        spread(pipeline, config, world)
        state = State(pipeline, config, world)
        snapshots = Snapshots(
            run.folder / "checkpoints",
            rank=world.rank,
            size=world.size,
            writes=world.place("replicate") == 0,
            keep_last=run.keep_last,
            keep_every=run.keep_every,
        )
        done, complaints = continued(snapshots, state, world)
        trackers: list[Tracker] = []
        with world.together():
            if world.rank == 0:
                trackers = [
                    JSONLines(run.folder / "log.jsonl", done),
                    ProgressLine(run.steps, done),
                    *dashboards(track, run.folder, done),
                ]
        for tracker in trackers:
            closing.callback(tracker.close)
        report = Report(world.device, trackers, watch, evaluates=run.evaluate is not None)
        for complaint in complaints:
            report.note(done, complaint)
        if done:
            report.note(done, f"continues from {snapshots.path(done)}")
        return train(run, pipeline, state, batches, snapshots, world, report, done=done)


def require_caches(datasets: Sequence[Dataset], pipeline: Pipeline) -> None:
    """Accept data sets whose cached targets are of the pipeline's own encoder.

    Where the encoder's weights are not here, only the layout can be compared.

    Raises:
        ModalignError: a cache holds other tokens.
    """
    cached = [dataset.cache for dataset in datasets if isinstance(dataset, Cached)]
    if not cached:
        return
    made_by = None
    if not pipeline.parts.random:
        with suppress(WeightsError):
            made_by = fingerprint(pipeline.parts.encoder, pipeline.parts.modality)
    for cache in cached:
        cache.require(pipeline.stream, made_by)


def watched(run: Run, registry: Registry, pipeline: Pipeline) -> Watch | None:
    """The evaluation that `run.evaluate` asks for."""
    if run.evaluate is None:
        return None
    dataset, _ = parse_source(run.evaluate, registry)
    number = min(WATCHED, len(dataset)) if isinstance(dataset, Sized) else WATCHED
    if not number:
        raise ModalignError(f"data {run.evaluate!r} has no samples to watch")
    examples = [dataset.example(index) for index in range(number)]
    return Watch(pipeline, examples, shown(run, registry, pipeline, examples))


def shown(
    run: Run, registry: Registry, pipeline: Pipeline, examples: Sequence[Example]
) -> Showing | None:
    """The generator of the recipe, for pictures of what it makes, if any are asked for."""
    if not run.evaluate_pictures:
        return None
    recipe = run.recipe
    assert recipe.generator is not None  # `planned` has refused
    with seeded(run.seed):
        whole = pair(recipe.encoder, recipe.generator, device=pipeline.device, registry=registry)
    return Showing(whole, examples[: run.evaluate_pictures])


def untrained(run: Run, registry: Registry, world: World) -> Pipeline:
    """The pipeline at the start of `run`, the same on every process; trained tensors are float32.

    Its generator stays unbuilt, since training needs none; what it saves names it all the same.
    """
    recipe, config = run.recipe, run.recipe.training
    chosen = fit(recipe, registry)
    dtype = torch.float32 if config.precision == "float32" else torch.bfloat16
    with seeded(run.seed):
        pipeline = build(
            recipe.derive(generator=None),
            weights=run.start or "untrained",
            device={"vlm": world.device, "encoder": world.device},
            dtype=dtype,
            registry=registry,
        )
    pipeline.float()
    if run.start is not None and dtype != torch.float32:
        trained = load_trained(weights_file(Path(run.start)), recipe, pipeline.stream)
        pipeline.load_state_dict(trained.tensors)
    pipeline.recipe, pipeline.parts.about = recipe, described(chosen)
    pipeline.extra.pop("training", None)
    return pipeline.to(world.device).train()


def planned(
    recipe: Recipe,
    registry: Registry,
    folder: Path,
    *,
    data: tuple[str, ...] = (),
    steps: int | None = None,
    start: Path | None = None,
    changes: Sequence[str] = (),
    **options: Any,
) -> Run:
    """The run that a recipe and what was asked beside it make; `options` are fields of `Run`.

    Raises:
        ModalignError: a change does not fit the recipe, there is no data, or nothing says how long
            to train or what to start from.
        WeightsError: there is no checkpoint to start from.
    """
    recipe = changed(recipe, changes)
    config = recipe.training
    data = data or config.data
    if not data:
        raise ModalignError(
            f"recipe {recipe.name!r} names no data; say --data NAME, one of: "
            f"{', '.join(sorted(registry.catalogue.datasets)) or 'none is installed'}"
        )
    mixture = [parse_source(text, registry) for text in data]
    if options.get("evaluate") is not None:
        parse_source(options["evaluate"], registry)  # refused now rather than after a build
    if options.get("evaluate_pictures"):
        if options.get("evaluate") is None:
            raise ModalignError("--evaluate-pictures shows watched samples; say --evaluate NAME")
        if recipe.generator is None:
            raise ModalignError(
                f"recipe {recipe.name!r} has no generator, so there is nothing to show; leave "
                "--evaluate-pictures out"
            )
    if start is None and config.starts_from is not None:
        before = registry.get("recipes", config.starts_from)
        if before.checkpoint is None:
            raise ModalignError(
                f"recipe {recipe.name!r} continues what {before.name!r} has trained: "
                "say --from FILE, or the folder of that run"
            )
        start = shipped(before)
    if start is not None and not weights_file(start).is_file():
        raise WeightsError(f"no checkpoint at {start} to start from")
    return Run(
        recipe=recipe,
        data=data,
        folder=folder,
        steps=steps or number_of_steps(recipe, mixture),
        start=None if start is None else str(start),
        **options,
    )


def changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with `changes`, each "field.field=value", the value JSON or else text.

    Raises:
        ModalignError: a change cannot be read, or does not fit; all misfits are named.
    """
    content = recipe.model_dump()
    for change in changes:
        name, equals, value = change.partition("=")
        *path, last = name.split(".")
        place: Any = content
        for key in path:
            place = place.get(key) if isinstance(place, dict) else None
        if not equals or not isinstance(place, dict):
            raise ModalignError(f"--set {change!r}: write field=value or field.field=value")
        place[last] = _read_value(value)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        misfits = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ModalignError(f"recipe {recipe.name!r} refuses {'; '.join(misfits)}") from error


def number_of_steps(recipe: Recipe, datasets: Sequence[tuple[Dataset, float]]) -> int:
    """`training.steps`, or as many as its epochs over data sets of known length are.

    Raises:
        ModalignError: neither is known.
    """
    config = recipe.training
    if config.steps is not None:
        return config.steps
    lengths = [len(dataset) for dataset, _ in datasets if isinstance(dataset, Sized)]
    if len(lengths) < len(datasets):
        raise ModalignError(
            f"recipe {recipe.name!r} trains for {config.epochs} epochs, but the data has no end; "
            "say how long: --steps N"
        )
    return max(1, config.epochs * sum(lengths) // config.batch_size)


def _read_value(text: str) -> Any:
    """A JSON value, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
