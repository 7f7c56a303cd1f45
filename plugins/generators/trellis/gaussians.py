"""The released Gaussian head: latents to splats.

Legend: N voxels, G Gaussians per voxel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modalign import Gaussians
from modalign.rendering.cameras import hammersley

from .blocks import final_norm, init_zero
from .slat_vae import SparseTransformer
from .sparse import SparseTensor

# What the released decoder was trained with.
RELEASED_REPRESENTATION: dict[str, Any] = {
    "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
    "perturb_offset": True,
    "voxel_size": 1.5,
    "num_gaussians": 32,
    "2d_filter_kernel_size": 0.1,
    "3d_filter_kernel_size": 9e-4,
    "scaling_bias": 4e-3,
    "opacity_bias": 0.1,
    "scaling_activation": "softplus",
}
RELEASED_RESOLUTION = 64


class GaussianHead:
    """Raw features (N, 14 G) to Gaussians, as a representation_config describes."""

    def __init__(self, config: Mapping[str, Any], resolution: int) -> None:
        self.config = config
        self.resolution = resolution
        count = config["num_gaussians"]
        self.parts = {
            "_xyz": (count, 3),
            "_features_dc": (count, 1, 3),
            "_scaling": (count, 3),
            "_rotation": (count, 4),
            "_opacity": (count, 1),
        }
        if config["scaling_activation"] != "softplus":
            raise ValueError(f"unknown scaling_activation {config['scaling_activation']!r}")

    @property
    def channels(self) -> int:
        """Width of the raw features."""
        return sum(math.prod(shape) for shape in self.parts.values())

    def offset_perturbation(self) -> Tensor:
        """Where a voxel's Gaussians start, (G, 3), before the tanh: evenly spread."""
        count = self.config["num_gaussians"]
        if not self.config["perturb_offset"]:
            return torch.zeros(count, 3)
        even = torch.from_numpy(hammersley(count, 3)).float()
        return torch.atanh((2 * even - 1) / self.config["voxel_size"])

    def activate(self, xyz: Tensor, raw: Tensor, perturbation: Tensor) -> Gaussians:
        """The N G Gaussians of voxels xyz (N, 3) with raw features (N, 14 G)."""
        widths = [math.prod(shape) for shape in self.parts.values()]
        found = {
            name: part.reshape(len(raw), *shape) * self.config["lr"][name]
            for (name, shape), part in zip(
                self.parts.items(), torch.split(raw, widths, dim=1), strict=True
            )
        }
        reach = 0.5 * self.config["voxel_size"] / self.resolution
        centre = (xyz[:, None].float() + 0.5) / self.resolution
        place = centre + torch.tanh(found["_xyz"] + perturbation) * reach - 0.5
        base = self.config["scaling_bias"]
        scaling = F.softplus(found["_scaling"] + base + math.log(-math.expm1(-base)))
        smallest = self.config["3d_filter_kernel_size"]
        rotation = found["_rotation"] + torch.tensor([1.0, 0, 0, 0], device=raw.device)
        opacity = self.config["opacity_bias"]
        return Gaussians(
            xyz=place.flatten(0, 1),
            scaling=(scaling.square() + smallest**2).sqrt().flatten(0, 1),
            rotation=F.normalize(rotation, dim=-1).flatten(0, 1),
            opacity=torch.sigmoid(found["_opacity"] + math.log(opacity / (1 - opacity))).flatten(
                0, 1
            ),
            features_dc=found["_features_dc"].flatten(0, 1),
        )


class SLatGaussianDecoder(SparseTransformer):
    """Latent to raw features (N, 14 G) of Gaussians."""

    def __init__(
        self,
        *,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        num_heads: int,
        representation_config: Mapping[str, Any],
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
        self.head = GaussianHead(representation_config, resolution)
        self.offset_perturbation: Tensor
        self.register_buffer("offset_perturbation", self.head.offset_perturbation())
        self.out_layer = nn.Linear(model_channels, self.head.channels)
        init_zero(self.out_layer)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Raw features (N, 14 G)."""
        return x.replace(self.out_layer(final_norm(self.trunk(x).feats)))

    def gaussians(self, raw: SparseTensor) -> list[Gaussians]:
        """The Gaussians of every batch element."""
        places = torch.split(raw.at.coords[:, 1:], raw.at.segments.counts)
        return [
            self.head.activate(xyz, feats, self.offset_perturbation)
            for xyz, feats in zip(places, raw.split(), strict=True)
        ]
