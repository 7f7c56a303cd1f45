"""The VAE of the sparse structure: an occupancy grid to a small dense latent grid and back.

Legend: B batch elements, R occupancy resolution, r latent resolution, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import LayerNorm32, init_zero

CHANNEL_NORM_EPS = 1e-5
# Channels next to each other: the norms then read memory in order, and convolutions in half
# precision are up to three times as fast on a processor.
LAYOUT = torch.channels_last_3d


class ChannelLayerNorm32(LayerNorm32):
    """Layer norm over the channels of a grid (B, C, R, R, R), in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=CHANNEL_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised grid."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ResBlock3d(nn.Module):
    """Norm, SiLU, convolution, twice, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelLayerNorm32(channels)
        self.norm2 = ChannelLayerNorm32(channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        init_zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """Grid of the same shape."""
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        out: Tensor = x + self.conv2(nn.functional.silu(self.norm2(h)))
        return out


class DownsampleBlock3d(nn.Module):
    """Half the resolution by a convolution with stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Grid (B, out_channels, R / 2, R / 2, R / 2)."""
        out: Tensor = self.conv(x)
        return out


class UpsampleBlock3d(nn.Module):
    """Twice the resolution by a convolution and a shuffle of channels into space."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels * 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Grid (B, out_channels, 2R, 2R, 2R)."""
        return shuffle_channels_to_space(self.conv(x))


def shuffle_channels_to_space(x: Tensor) -> Tensor:
    """Grid (B, 8C, R, R, R) to (B, C, 2R, 2R, 2R); channel c 8 + (sx 4 + sy 2 + sz)."""
    batch, channels, *size = x.shape
    x = x.reshape(batch, channels // 8, 2, 2, 2, *size)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, channels // 8, *(2 * side for side in size))


def sample_posterior(mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
    """A draw from the normal distribution an encoder describes, of the shape of `mean`."""
    noise = torch.randn(mean.shape, generator=generator, device=generator.device)
    return mean + torch.exp(0.5 * logvar) * noise.to(mean)


class SparseStructureEncoder(nn.Module):
    """Occupancy grid to mean and log variance of its latent grid."""

    def __init__(
        self,
        *,
        in_channels: int,
        latent_channels: int,
        num_res_blocks: int,
        channels: Sequence[int],
        num_res_blocks_middle: int = 2,
    ) -> None:
        super().__init__()
        self.input_layer = nn.Conv3d(in_channels, channels[0], 3, padding=1)
        blocks: list[nn.Module] = []
        for level, width in enumerate(channels):
            blocks += [ResBlock3d(width) for _ in range(num_res_blocks)]
            if level + 1 < len(channels):
                blocks.append(DownsampleBlock3d(width, channels[level + 1]))
        self.blocks = nn.ModuleList(blocks)
        self.middle_block = nn.Sequential(
            *(ResBlock3d(channels[-1]) for _ in range(num_res_blocks_middle))
        )
        self.out_layer = nn.Sequential(
            ChannelLayerNorm32(channels[-1]),
            nn.SiLU(),
            nn.Conv3d(channels[-1], latent_channels * 2, 3, padding=1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, both (B, latent_channels, r, r, r), of a grid (B, C, R, R, R)."""
        h = self.input_layer(x).to(_conv_dtype(self.blocks), memory_format=LAYOUT)
        for block in self.blocks:
            h = block(h)
        mean, logvar = self.out_layer(self.middle_block(h).to(x.dtype)).chunk(2, dim=1)
        return mean, logvar


class SparseStructureDecoder(nn.Module):
    """Latent grid to occupancy logits."""

    def __init__(
        self,
        *,
        out_channels: int,
        latent_channels: int,
        num_res_blocks: int,
        channels: Sequence[int],
        num_res_blocks_middle: int = 2,
    ) -> None:
        super().__init__()
        self.input_layer = nn.Conv3d(latent_channels, channels[0], 3, padding=1)
        self.middle_block = nn.Sequential(
            *(ResBlock3d(channels[0]) for _ in range(num_res_blocks_middle))
        )
        blocks: list[nn.Module] = []
        for level, width in enumerate(channels):
            blocks += [ResBlock3d(width) for _ in range(num_res_blocks)]
            if level + 1 < len(channels):
                blocks.append(UpsampleBlock3d(width, channels[level + 1]))
        self.blocks = nn.ModuleList(blocks)
        self.out_layer = nn.Sequential(
            ChannelLayerNorm32(channels[-1]),
            nn.SiLU(),
            nn.Conv3d(channels[-1], out_channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_channels, R, R, R) of a latent grid (B, C, r, r, r)."""
        h = self.input_layer(x).to(_conv_dtype(self.blocks), memory_format=LAYOUT)
        h = self.middle_block(h)
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.out_layer(h.to(x.dtype))
        return logits


def occupied(logits: Tensor) -> Tensor:
    """Coordinates (N, 4) int32 = (batch, x, y, z) where logits (B, 1, R, R, R) are positive."""
    return (logits[:, 0] > 0).nonzero().to(torch.int32)


def _conv_dtype(module: nn.Module) -> torch.dtype:
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d):
            return layer.weight.dtype
    raise AssertionError("no convolution")
