"""Per-sample alignment agrees with the metrics over a whole set."""

from __future__ import annotations

import pytest
import torch

from modalign import TokenStream
from modalign.evaluation import Gallery, Values, stage_effects, summary
from modalign.metrics.alignment import AlignmentMeter
from modalign.metrics.retrieval import pooled, ranks, recall_at

NUM = 12


def stream(seed: int) -> TokenStream:
    draw = torch.Generator().manual_seed(seed)
    return {
        "cls": torch.randn(NUM, 1, 8, generator=draw),
        "patches": torch.randn(NUM, 6, 8, generator=draw),
    }


def results(gallery: Gallery, predicted: TokenStream, size: int) -> list[Values]:
    found: list[Values] = []
    for start in range(0, NUM, size):
        window = range(start, min(start + size, NUM))
        part = {name: tokens[start : start + size] for name, tokens in predicted.items()}
        found += gallery.compare(part, window)
    return found


def test_means_over_samples_are_the_meter_s_and_the_recall_function_s() -> None:
    real, predicted = stream(0), stream(1)
    found = summary(results(Gallery(real), predicted, 5))
    meter = AlignmentMeter()
    meter.update(predicted, real)
    for group, values in meter.compute().items():
        names = [f"{group} {text}" for text in ("cos", "MSE", "norm")]
        assert [found[name] for name in names] == pytest.approx(list(values.values()), rel=1e-5)
        ids = torch.arange(NUM)
        places = ranks(pooled(predicted[group]), pooled(real[group]), ids, ids)
        for name, share in recall_at(places).items():
            assert found[f"{group} {name}"] == pytest.approx(share)


def test_results_do_not_depend_on_the_batch_size() -> None:
    gallery, predicted = Gallery(stream(0)), stream(1)
    for one, other in zip(
        results(gallery, predicted, 1), results(gallery, predicted, 7), strict=True
    ):
        for group in one:
            assert one[group] == pytest.approx(other[group], rel=1e-5)


def test_real_tokens_reach_the_ceiling() -> None:
    real = stream(0)
    found = summary(results(Gallery(real), real, 4))
    assert found["patches cos"] == pytest.approx(1)
    assert found["patches MSE"] == 0
    assert found["cls norm"] == pytest.approx(1)
    assert found["cls R@1"] == 100


def test_tables_have_a_column_per_group_and_metric() -> None:
    gallery = Gallery(stream(0))
    alignment, retrieval = gallery.tables({"real": results(gallery, stream(0), 4)}, "asset")
    assert list(alignment.columns)[:3] == ["cls cos", "cls MSE", "cls norm"]
    assert list(retrieval.columns)[-1] == "patches R@10"
    assert set(alignment.columns) | set(retrieval.columns) == set(alignment.rows["real"])


def test_stage_effects_are_differences_to_the_first_stage() -> None:
    gallery = Gallery(stream(0))
    rows = {
        "real": results(gallery, stream(2), 4),
        "ours": results(gallery, stream(0), 4),
        "ours-stage1": results(gallery, stream(1), 4),
    }
    table = stage_effects({"asset": rows})
    assert list(table.rows) == ["ours, asset"]
    first = summary(rows["ours-stage1"])
    assert table.rows["ours, asset"]["cls cos"] == pytest.approx(1 - first["cls cos"], abs=1e-6)
    assert "cls R@10" in table.columns
