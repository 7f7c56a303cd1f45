"""Small voxel worlds, and module weights that hide nothing."""

from __future__ import annotations

import torch
from modalign_plugins.generators.trellis.sparse import Coordinates
from torch import Tensor, nn


def scattered(side: int = 6, batch: int = 3, seed: int = 0) -> Tensor:
    """Coordinates (N, 4) of random voxels; batch elements of different sizes, not sorted."""
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for element in range(batch):
        filled = torch.rand(side, side, side, generator=draw) < 0.15 * (element + 1)
        xyz = filled.nonzero()
        xyz = xyz[torch.randperm(len(xyz), generator=draw)]
        parts.append(torch.cat([torch.full((len(xyz), 1), element), xyz], dim=1))
    return torch.cat(parts).int()


def on_grid(at: Coordinates, feats: Tensor, side: int) -> Tensor:
    """Features (N, C) as a dense grid (B, C, side, side, side), zeros elsewhere."""
    grid = torch.zeros(at.batch_size, side, side, side, feats.shape[1], dtype=feats.dtype)
    grid = grid.index_put(tuple(at.coords.long().unbind(1)), feats)
    return grid.permute(0, 4, 1, 2, 3)


def off_grid(at: Coordinates, grid: Tensor) -> Tensor:
    """The features (N, C) of a dense grid at the voxels."""
    return grid.permute(0, 2, 3, 4, 1)[tuple(at.coords.long().unbind(1))]


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every parameter drawn anew, so that none is zero."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
    return module
