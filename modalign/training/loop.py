"""The loop: batches in, updates, rows of the log, checkpoints. The rest of this room serves it."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from modalign.errors import OutputError, TrainingError
from modalign.pipeline import Pipeline
from modalign.training.batches import Batches, Step
from modalign.training.report import Report
from modalign.training.run import Run, export
from modalign.training.schedule import learning_rate
from modalign.training.snapshots import Snapshots
from modalign.training.spread import casting
from modalign.training.state import State
from modalign.training.world import StopSignal, World

COUNTED = ("skipped_samples", "skipped_steps")  # in every row of the log: since the run began


def train(
    run: Run,
    pipeline: Pipeline,
    state: State,
    batches: Batches,
    snapshots: Snapshots,
    world: World,
    report: Report,
    *,
    done: int = 0,
) -> int:
    """Take the steps after `done`, to the last or until SIGTERM; returns the last one taken.

    Raises:
        OutputError: a checkpoint or the trained file cannot be written.
        TrainingError: too many steps in a row had no finite gradient.
    """
    config = run.recipe.training
    with StopSignal(world) as stop:
        for step in batches.steps(done + 1, run.steps, run.workers):
            done = step.number
            rate = learning_rate(done, run.steps, config)
            samples = world.total(torch.full((), float(step.samples), device=world.device))
            state.clear_gradients()
            losses = backward(run, pipeline, step, samples, world)
            norm = state.take(done, rate, samples)
            state.record({**losses, "grad_norm": norm, "samples": samples})
            report.step(step)

            stopping = stop.asked()
            last = stopping or done == run.steps
            logs, saves = (last or done % n == 0 for n in (run.log_every, run.save_every))
            if logs or saves:  # a checkpoint never goes beyond what is told
                report.skipped_samples(world)
                with world.together():  # only here does anything wait for the device
                    require_finite_gradients(state, batches, snapshots, config.max_nonfinite)
            if logs:
                counts = {name: float(state.counts[name]) for name in COUNTED}
                report.row(done, {**state.means(), "lr": rate, **counts})
            looks = done == run.steps or done % run.evaluate_every == 0  # stopping, a save is due
            if report.evaluates and looks:
                report.evaluation(done, state.exported())

            snapshots.check()
            if saves:
                if run.keep_every and done % run.keep_every == 0:
                    export(run, pipeline, state, world, done, run.model_at(done))
                snapshots.save(done, state.pieces())
            if stopping:
                break
    snapshots.finish()
    if done == run.steps:
        export(run, pipeline, state, world, done, run.model)
    else:
        report.note(done, "stopped by SIGTERM; the same command continues from here")
    return done


def backward(
    run: Run, pipeline: Pipeline, step: Step, samples: Tensor, world: World
) -> dict[str, Tensor]:
    """Leave the gradient of the mean over all processes' samples at the parameters.

    Returns the losses by name, means over the same samples.
    """
    cast = casting(run.recipe.training, world)
    sums: dict[str, Tensor] = {}
    for number, part in enumerate(step.parts, start=1):
        if isinstance(pipeline, FSDPModule):
            pipeline.set_requires_gradient_sync(number == len(step.parts))
        with cast():
            losses = pipeline(part.batch, part.generators(run.seed, world.device))
        share = len(part.slots) / samples.clamp(min=1)
        # FSDP averages gradients over processes; the sum of shares is what is asked for.
        (losses["loss"] * (share * world.size)).backward()
        for name, loss in losses.items():
            term = loss.detach() * share
            sums[name] = sums[name] + term if name in sums else term
    totals = world.total(torch.stack(list(sums.values())))
    return dict(zip(sums, totals.unbind(), strict=True))


def require_finite_gradients(
    state: State, batches: Batches, snapshots: Snapshots, allowed: int
) -> None:
    """Stop a run that has left out more than `allowed` steps in a row since it was last asked.

    Raises:
        TrainingError: names the samples of the last one, and the last good checkpoint.
    """
    most = state.counts["most_in_a_row"]
    if most <= allowed:
        most.zero_()  # the steps in a row now are counted on
        return
    with suppress(OutputError):  # then an older one is the last
        snapshots.finish()
    step, kept = int(state.counts["last"]), snapshots.steps()
    named = batches.identifiers(step)
    shown = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
    raise TrainingError(
        f"more than {allowed} steps in a row had no finite gradient, the last of them step {step} "
        f"with {shown}; the last good checkpoint is "
        f"{snapshots.path(kept[-1]) if kept else 'none'}; lower the rate, or look at these samples"
    )
