"""Linear probes: how much of the truth a linear classifier reads from frozen features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def linear_probe(
    features: Tensor, labels: Tensor, tested: Tensor, truth: Tensor, *, steps: int = 60
) -> float:
    """Accuracy on `tested` (M, D) of a logistic regression fitted to `features` (N, D).

    Features are standardised with the training rows' own statistics; weight decay is fixed.
    """
    mean, std = features.mean(0), features.std(0) + 1e-6
    features, tested = (features - mean) / std, (tested - mean) / std
    classes = int(max(labels.max(), truth.max())) + 1
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, history_size=8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), labels)
        loss = loss + 2e-4 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return float((F.linear(tested, weight, bias).argmax(1) == truth).float().mean())
