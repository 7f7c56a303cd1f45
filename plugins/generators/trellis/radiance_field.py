"""The released radiance-field head (Strivec): latents to small factorised fields, one per voxel.

Legend: N voxels, R rank, D samples per axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from modalign import RadianceField

from .blocks import final_norm, init_zero
from .slat_vae import SparseTransformer
from .sparse import SparseTensor


class SLatRadianceFieldDecoder(SparseTransformer):
    """Latent to raw features of a radiance field."""

    def __init__(
        self,
        *,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        num_heads: int,
        representation_config: Mapping[str, int],
        mlp_ratio: float = 4,
        window_size: int = 8,
    ) -> None:
        super().__init__(
            resolution=resolution,
            in_channels=latent_channels,
            model_channels=model_channels,
            num_blocks=num_blocks,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            window_size=window_size,
        )
        rank, dim = representation_config["rank"], representation_config["dim"]
        self.shapes = [(rank, 3, dim), (rank,), (rank, 1, 3)]
        self.out_layer = nn.Linear(model_channels, sum(map(math.prod, self.shapes)))
        init_zero(self.out_layer)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Raw features (N, 3 R D + R + 3 R)."""
        return x.replace(self.out_layer(final_norm(self.trunk(x).feats)))

    def fields(self, raw: SparseTensor) -> list[RadianceField]:
        """The radiance field of every batch element."""
        places = torch.split(raw.at.coords[:, 1:], raw.at.segments.counts)
        fields = []
        for xyz, feats in zip(places, raw.split(), strict=True):
            parts = torch.split(feats, [math.prod(shape) for shape in self.shapes], dim=1)
            trivec, density, color = (
                part.reshape(len(feats), *shape)
                for part, shape in zip(parts, self.shapes, strict=True)
            )
            # An untrained field is then a constant, not nothing.
            position = (xyz.float() + 0.5) / self.resolution
            fields.append(RadianceField(position, trivec + 1, density, color, self.resolution))
        return fields
