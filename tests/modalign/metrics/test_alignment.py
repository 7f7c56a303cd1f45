"""Expected numbers come from algebra."""

from __future__ import annotations

import pytest
import torch

from modalign.metrics.alignment import AlignmentMeter, cosine, mean_squared_error, norm_ratio
from modalign.tokens import TokenStream


def random_stream(batch: int, seed: int) -> TokenStream:
    generator = torch.Generator().manual_seed(seed)
    return {
        "cls": torch.randn(batch, 1, 8, generator=generator),
        "patches": torch.randn(batch, 6, 8, generator=generator),
    }


def test_equal_tokens_are_ideal() -> None:
    tokens = random_stream(3, 0)["patches"]
    assert cosine(tokens, tokens).item() == pytest.approx(1)
    assert mean_squared_error(tokens, tokens) == 0
    assert norm_ratio(tokens, tokens).item() == pytest.approx(1)


def test_values_of_a_known_pair() -> None:
    predicted, target = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[1.0, 1.0]]])
    assert cosine(predicted, target).item() == pytest.approx(2**-0.5)
    assert mean_squared_error(predicted, target).item() == pytest.approx(2.5)
    assert norm_ratio(predicted, target).item() == pytest.approx(3 / 2**0.5)


def test_metrics_of_unit_variance_targets_are_bound_by_an_identity() -> None:
    """Per token, mse = 1 + r^2 - 2 r cos (facts of GAP3D, section 3)."""
    tokens = random_stream(1, 0)["cls"], random_stream(1, 1)["cls"]
    predicted, target = (torch.nn.functional.layer_norm(v, (8,), eps=0) for v in tokens)
    predicted = 0.7 * predicted
    r, c = norm_ratio(predicted, target), cosine(predicted, target)
    torch.testing.assert_close(mean_squared_error(predicted, target), 1 + r**2 - 2 * r * c)


def test_zero_tokens_give_finite_numbers() -> None:
    zero, tokens = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
    for pair in ((zero, tokens), (tokens, zero), (zero, zero)):
        assert cosine(*pair) == 0
        assert norm_ratio(*pair).isfinite()


def test_every_sample_counts_once_whatever_the_batches() -> None:
    predicted, target = random_stream(7, 0), random_stream(7, 1)
    values = []
    for sizes in ((7,), (3, 3, 1), (6, 1)):
        meter, start = AlignmentMeter(), 0
        for size in sizes:
            window = slice(start, start + size)
            meter.update(
                {name: v[window] for name, v in predicted.items()},
                {name: v[window] for name, v in target.items()},
            )
            start += size
        assert meter.num_samples == 7
        values.append(meter.compute())
    for other in values[1:]:
        for name in predicted:
            assert other[name] == pytest.approx(values[0][name])
    expected = cosine(predicted["cls"], target["cls"]).item()
    assert values[0]["cls"]["cosine"] == pytest.approx(expected)


def test_misuse_is_named() -> None:
    meter = AlignmentMeter()
    with pytest.raises(ValueError, match="no batch"):
        meter.compute()
    with pytest.raises(ValueError, match="predicted stream"):
        meter.update(random_stream(2, 0), random_stream(3, 0))
