"""Retrieval: is the right item among the first k of a gallery sorted by similarity?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

QUERIES_AT_ONCE = 4096


def pooled(tokens: Tensor) -> Tensor:
    """One unit vector (B, D) per sample: the mean of its tokens (B, K, D), then normalised."""
    return normalize(tokens.float().mean(dim=1), dim=-1)


def ranks(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    optimistic: bool = True,
) -> Tensor:
    """Rank (Q,) of each query's item in the gallery, 1 is first.

    Similarity is the dot product of `queries` (Q, D) and `gallery` (G, D) in float32; an id in the
    gallery more than once counts at its best place. Items as similar as the right one count behind
    it, or before it if not `optimistic`.

    Raises:
        ValueError: an id is not in the gallery.
    """
    gallery = gallery.float()
    parts = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        window = slice(start, start + QUERIES_AT_ONCE)
        similarity = queries[window].float() @ gallery.T  # (Q, G)
        right = query_ids[window, None] == gallery_ids  # (Q, G)
        if not right.any(dim=1).all():
            lost = query_ids[window][~right.any(dim=1)][0].item()
            raise ValueError(f"the gallery of {len(gallery)} has no item with id {lost}")
        best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        before = similarity > best if optimistic else (similarity >= best) & ~right
        parts.append(1 + before.sum(dim=1))
    return torch.cat(parts)


def recall_at(ranks: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Percentage of ranks (Q,) up to each k, as {"R@1": ...}.

    The released evaluation cuts an unsorted top 10, so its R@1 and R@5 are too low; R@10 agrees.
    """
    return {f"R@{k}": 100 * (ranks <= k).double().mean().item() for k in ks}
