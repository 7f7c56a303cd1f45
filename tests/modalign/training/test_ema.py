"""Expected numbers come from the closed form."""

from __future__ import annotations

import pytest
import torch

from modalign.training.ema import EMA


def test_the_average_of_a_constant_follows_the_closed_form() -> None:
    """a_n = x + (a_0 - x) decay^n."""
    ema = EMA({"w": torch.zeros(3)}, decay=0.9)
    for _ in range(20):
        ema.update({"w": torch.full((3,), 2.0)})
    torch.testing.assert_close(ema.tensors["w"], torch.full((3,), 2 - 2 * 0.9**20))


def test_averages_are_float32_and_independent_of_what_they_average() -> None:
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    ema = EMA({"w": weight}, decay=0.999)
    with torch.no_grad():
        weight.add_(1)
    assert ema.tensors["w"].dtype == torch.float32
    assert ema.tensors["w"].tolist() == [1, 1]
    ema.update({"w": weight})
    torch.testing.assert_close(ema.tensors["w"], torch.full((2,), 1.001))


def test_applied_lends_the_average_and_returns_the_weights_even_after_an_error() -> None:
    weight = torch.nn.Parameter(torch.full((2,), 3.0))
    ema = EMA({"w": torch.ones(2)}, decay=0.5)
    seen = []

    def evaluate() -> None:
        with ema.applied({"w": weight}):
            seen.extend(weight.tolist())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        evaluate()
    assert seen == [1, 1]
    assert weight.tolist() == [3, 3]
    assert ema.tensors["w"].tolist() == [1, 1]


def test_the_memory_is_short_at_first() -> None:
    """Decays 2/11, 3/12 and then the own one; from 0 towards 1, by algebra."""
    average = EMA({"x": torch.zeros(1)}, decay=0.25)
    for step in (1, 2, 3):
        average.update({"x": torch.ones(1)}, step)
    expected = 1 - 2 / 11 * 3 / 12 * 0.25
    torch.testing.assert_close(average.tensors["x"], torch.tensor([expected]))
