"""Several layers of a VLM as one condition."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from modalign.recipe import ReadingConfig


class MeanOfLayers(nn.Module):
    """The mean of layers as they are; one layer is itself. Nothing is trained."""

    def forward(self, states: Tensor) -> Tensor:
        """(B, S, C) from (B, L, S, C)."""
        return states[:, 0] if states.shape[1] == 1 else states.mean(dim=1)


class LearnedPooling(nn.Module):
    """A softmax-weighted mean of layers, each normalised over C; the L weights are trained.

    Normalised because norms grow by orders of magnitude with depth: the largest layer would drown
    the others. Starts as the plain mean.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_layers))

    def forward(self, states: Tensor) -> Tensor:
        """(B, S, C) from (B, L, S, C)."""
        shares = self.logits.softmax(dim=0).to(states.dtype)
        return torch.einsum("l,blsc->bsc", shares, F.layer_norm(states, states.shape[-1:]))


def layer_pooling(reading: ReadingConfig) -> nn.Module:
    """What carries the layers that `reading` names to one condition."""
    if reading.pooling == "learned":
        return LearnedPooling(len(reading.layers))
    return MeanOfLayers()
