"""The learning rate of a step."""

from __future__ import annotations

import math

from modalign.recipe import TrainingConfig


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """The rate of update `step`, 1 to `steps`: linear warm-up to `lr`, then a cosine to `min_lr`.

    The formula of transformers' "cosine_with_min_lr", which GAP3D trains with, one step further:
    there the first update has rate 0, here the last one has `min_lr`.
    """
    warmup = math.ceil(config.warmup * steps)
    if step < warmup:
        return config.lr * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * done))
