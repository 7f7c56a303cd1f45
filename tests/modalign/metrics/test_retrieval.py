"""Expected numbers come from algebra, and from sorting in plain Python."""

from __future__ import annotations

import pytest
import torch

from modalign.metrics import retrieval
from modalign.metrics.retrieval import pooled, ranks, recall_at


def test_ranks_equal_those_of_a_sorted_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "QUERIES_AT_ONCE", 7)
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(30, 5, generator=generator)
    queries = torch.randn(20, 5, generator=generator)
    gallery_ids = torch.randperm(30, generator=generator)
    query_ids = torch.randint(30, (20,), generator=generator)
    expected = []
    for query, wanted in zip(queries, query_ids, strict=True):
        order = sorted(range(30), key=lambda j: -(query @ gallery[j]).item())  # noqa: B023
        expected.append(1 + [gallery_ids[j] for j in order].index(wanted))
    assert ranks(queries, gallery, query_ids, gallery_ids).tolist() == expected


def test_ties_are_counted_behind_or_before_as_asked() -> None:
    gallery = torch.tensor([[1.0, 0.0]] * 4)
    ids, query = torch.arange(4), torch.tensor([[1.0, 1.0]])
    assert ranks(query, gallery, torch.tensor([2]), ids).item() == 1
    assert ranks(query, gallery, torch.tensor([2]), ids, optimistic=False).item() == 4


def test_an_item_counts_at_its_best_place() -> None:
    gallery = torch.tensor([[0.0], [3.0], [2.0]])
    found = ranks(torch.ones(1, 1), gallery, torch.tensor([5]), torch.tensor([5, 1, 5]))
    assert found.item() == 2


def test_an_unknown_item_is_named() -> None:
    with pytest.raises(ValueError, match="no item with id 9"):
        ranks(torch.ones(1, 1), torch.ones(2, 1), torch.tensor([9]), torch.arange(2))


def test_recall_is_a_sorted_percentage() -> None:
    found = recall_at(torch.tensor([1, 2, 5, 6, 11]))
    assert found == {"R@1": 20.0, "R@5": 60.0, "R@10": 80.0}
    assert recall_at(torch.tensor([1, 3]), ks=(3,)) == {"R@3": 100.0}


def test_tokens_are_averaged_before_they_are_normalised() -> None:
    vector = pooled(torch.tensor([[[4.0, 0.0], [0.0, 2.0]]]))
    torch.testing.assert_close(vector, torch.tensor([[2.0, 1.0]]) / 5**0.5)
