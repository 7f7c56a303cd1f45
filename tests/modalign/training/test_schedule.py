"""Expected rates come from transformers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modalign.recipe import TrainingConfig
from modalign.training.schedule import learning_rate


def test_rates_are_those_of_transformers_one_step_on() -> None:
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    config = TrainingConfig(lr=0.5, min_lr=0.1, warmup=0.15)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 6, 40, min_lr=config.min_lr)
    for step in range(1, 41):
        optimizer.step()
        theirs.step()
        assert learning_rate(step, 40, config) == pytest.approx(theirs.get_last_lr()[0])
    assert learning_rate(40, 40, config) == pytest.approx(config.min_lr)
