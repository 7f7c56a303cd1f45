"""How close predicted tokens are to an encoder's: cosine, squared error, norm ratio, per group."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from modalign.tokens import TokenStream

EPS = 1e-8


def cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean cosine between tokens at the same position, both (B, K, D). 1 is ideal.

    Source: GAP3D (arXiv:2605.28995), eq. 6; each norm is kept from 0 by itself, as released.
    """
    return torch.cosine_similarity(predicted.float(), target.float(), dim=-1, eps=EPS).mean()


def mean_squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over all elements of both (B, K, D). 0 is ideal, 2 is chance for unit variance.

    Source: GAP3D (arXiv:2605.28995), eq. 7.
    """
    return (predicted.float() - target.float()).square().mean()


def norm_ratio(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean ratio of feature norms, predicted over target, both (B, K, D). 1 is ideal.

    Averaged over tokens after dividing, so one long token cannot hide a short one.
    Source: GAP3D (arXiv:2605.28995), eq. 8.
    """
    ratio: Tensor = predicted.float().norm(dim=-1) / (target.float().norm(dim=-1) + EPS)  # (B, K)
    return ratio.mean()


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine,
    "mse": mean_squared_error,
    "norm_ratio": norm_ratio,
}


class AlignmentMeter:
    """Means over all samples of a data set, fed batch by batch.

    Every sample counts once. (The released evaluation averages batch means without weights, so a
    short last batch counts too much.)
    """

    def __init__(self) -> None:
        self.num_samples = 0
        self._sums: dict[str, dict[str, float]] = {}

    @torch.no_grad()
    def update(self, predicted: TokenStream, target: TokenStream) -> None:
        """Take a batch of streams (B, K, D) of one layout.

        Raises:
            ValueError: the streams differ in groups or shapes.
        """
        shapes = [{name: tuple(v.shape) for name, v in s.items()} for s in (predicted, target)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"predicted stream has {shapes[0]}, target {shapes[1]}")
        batch = len(next(iter(target.values())))
        for name, tokens in target.items():
            sums = self._sums.setdefault(name, dict.fromkeys(METRICS, 0.0))
            for metric, function in METRICS.items():
                sums[metric] += batch * function(predicted[name], tokens).item()
        self.num_samples += batch

    def compute(self) -> dict[str, dict[str, float]]:
        """Values by group, then by metric.

        Raises:
            ValueError: nothing was measured.
        """
        if not self.num_samples:
            raise ValueError("no batch was measured")
        return {
            name: {metric: total / self.num_samples for metric, total in sums.items()}
            for name, sums in self._sums.items()
        }
