"""Train an aligner in GAP3D's two stages: on scenes, then from there on assets.

`--recipe gap3d-mini` or `gap3d-mini-reference`: the same data, steps and seed, another objective.
Targets are encoded once. Usage: python examples/mini/aligner.py --recipe R --stage 1|2 [--steps N]
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from cache import pictures, texts, tokens
from publish import WEIGHTS, history
from torch import Tensor
from trainer import RUNS, Trainer, compile_forward, quick

import modalign
from modalign import Prompt, TokenStreamSpec
from modalign.assembly import described
from modalign.checkpoint import load_trained, save_checkpoint
from modalign.fingerprint import fingerprint
from modalign.fitting import fit
from modalign.recipe import Recipe

STEPS = {1: 6000, 2: 33_000}
NOISES = 4  # targets per prompt: reading one takes 0.6 to 1.2 times as long as the head
VIEWS = {1: (0, 1), 2: (2, 3)}  # of the cache: two scenes, two assets


def file_of(recipe: Recipe) -> Path:
    """Where its weights go: into the package, or beside the state if they do not ship."""
    return (WEIGHTS if recipe.checkpoint else RUNS) / f"{recipe.name}.safetensors"


def statistics(stream: TokenStreamSpec, targets: Any) -> dict[str, dict[str, float]]:
    """Mean and deviation of all numbers of each group in targets (objects, views, N, D)."""
    groups = stream.split(torch.from_numpy(targets).flatten(0, 1))
    return {
        name: {
            "mean": round(float(tokens.mean(dtype=torch.float64)), 5),
            "deviation": round(float(tokens.double().std()), 5),
        }
        for name, tokens in groups.items()
    }


def main() -> None:
    """Train one stage of one recipe and publish its checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="gap3d-mini")
    parser.add_argument("--stage", type=int, choices=(1, 2), required=True)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    final = modalign.installed().get("recipes", options.recipe)
    first = modalign.installed().get("recipes", f"{options.recipe}-stage1")
    recipe = first if options.stage == 1 else final
    # Training needs no generator, and the mini one may not be trained yet.
    pipeline = modalign.build(recipe.derive(generator=None), weights="untrained").train()
    if options.stage == 2:
        trained = load_trained(file_of(first), first, pipeline.stream, pipeline.trainable())
        pipeline.load_state_dict(trained.tensors)
    compile_forward(pipeline.head)
    known, targets = texts(), tokens()
    assert len(targets) == len(pictures())
    trainer = Trainer(
        f"aligner-{recipe.name}",
        pipeline.trainable(),
        steps=options.steps or STEPS[options.stage],
        lr=recipe.training.lr,
        weight_decay=recipe.training.weight_decay,
        betas=recipe.training.betas,
        # GAP3D keeps no average; without one the published weights are the last ones.
        ema=recipe.training.ema_decay or 0.0,
    )
    views = VIEWS[options.stage]

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rng = random.Random(step)
        rows = [rng.randrange(len(targets)) for _ in range(recipe.training.batch_size // NOISES)]
        length = "long" if rng.random() < 0.25 else "short"
        asked = [Prompt(rng.choice(known[row][length])) for row in rows]
        shown = [(row, rng.choice(views)) for row in rows for _ in range(NOISES)]
        packed = torch.stack([torch.tensor(targets[place]) for place in shown])
        batch = {
            "prompt": pipeline.parts.vlm.prepare(asked),
            "target": pipeline.stream.split(packed.float()),
        }
        with quick():
            terms: dict[str, Tensor] = pipeline(batch, generator)
        return terms

    trainer.run(losses, batch_size=recipe.training.batch_size)
    save_checkpoint(
        file_of(recipe),
        {name: tensor.detach().half() for name, tensor in pipeline.trainable().items()},
        recipe,
        pipeline.stream,
        {
            **described(fit(recipe, modalign.installed())),
            "fingerprint": fingerprint(pipeline.parts.encoder),
            "statistics": statistics(pipeline.stream, targets[:, list(views)]),
            "training": history(trainer),
        },
    )


if __name__ == "__main__":
    main()
