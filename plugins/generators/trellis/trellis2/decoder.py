"""The decoders of shape and texture: convolutions that split voxels as they refine them.

Legend: N voxels, M of their children, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from modalign_plugins.generators.trellis.blocks import (
    block_norm,
    final_norm,
    init_zero,
    trunk_dtype,
)
from modalign_plugins.generators.trellis.layers import SparseConv3d
from modalign_plugins.generators.trellis.sparse import SparseTensor
from torch import Tensor, nn
from torch.nn.functional import silu

from modalign import GenerationError

from .subdivision import NUM_CHILDREN, Subdivision

MLP_RATIO = 4
SHAPE_CHANNELS = 7
MATERIAL_CHANNELS = 6


class ConvNeXtBlock(nn.Module):
    """Convolution, norm, MLP, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = block_norm(channels, affine=True)
        self.conv = SparseConv3d(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, MLP_RATIO * channels),
            nn.SiLU(),
            nn.Linear(MLP_RATIO * channels, channels),
        )
        init_zero(self.mlp[2])

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features (N, C) at the same voxels."""
        out: Tensor = x.feats + self.mlp(self.norm(self.conv(x).feats))
        return x.replace(out)


class UpsampleBlock(nn.Module):
    """Twice the resolution: a convolution makes features for 8 children, some of which exist.

    Args:
        predicts: whether it says itself which children exist.
    """

    def __init__(self, channels: int, out_channels: int, predicts: bool) -> None:
        super().__init__()
        if channels % NUM_CHILDREN or out_channels % (channels // NUM_CHILDREN):
            raise ValueError(
                f"{channels} channels do not spread over 8 children of {out_channels} channels"
            )
        self.out_channels = out_channels
        self.norm1 = block_norm(channels, affine=True)
        self.norm2 = block_norm(out_channels, affine=False)
        self.conv1 = SparseConv3d(channels, NUM_CHILDREN * out_channels)
        self.conv2 = SparseConv3d(out_channels, out_channels)
        self.to_subdiv = nn.Linear(channels, NUM_CHILDREN) if predicts else None
        init_zero(self.conv2)

    def subdivide(self, x: SparseTensor) -> Tensor:
        """Which children exist, (N, 8) bool."""
        assert self.to_subdiv is not None
        exists: Tensor = self.to_subdiv(x.feats) > 0
        return exists

    def forward(self, x: SparseTensor, to: Subdivision) -> SparseTensor:
        """Features (M, out_channels) at the children."""
        h = self.conv1(x.replace(silu(self.norm1(x.feats))))
        h = SparseTensor(to.fine, to.channels_to_space(h.feats))
        h = self.conv2(h.replace(silu(self.norm2(h.feats))))
        skip = to.channels_to_space(x.feats)
        repeats = self.out_channels // skip.shape[1]
        return h.replace(h.feats + skip.repeat_interleave(repeats, dim=1))


class Decoder(nn.Module):
    """A latent to features at `2 ** (levels - 1)` times its resolution.

    Args:
        model_channels: widths of the levels, coarse to fine.
        num_blocks: ConvNeXt blocks of each level.
        pred_subdiv: whether it says which voxels split into which children, or is told.
    """

    def __init__(
        self,
        *,
        out_channels: int,
        latent_channels: int,
        model_channels: Sequence[int],
        num_blocks: Sequence[int],
        pred_subdiv: bool,
    ) -> None:
        super().__init__()
        if len(model_channels) != len(num_blocks):
            raise ValueError(f"{len(model_channels)} widths but blocks of {len(num_blocks)} levels")
        self.latent_channels = latent_channels
        self.from_latent = nn.Linear(latent_channels, model_channels[0])
        levels = []
        for level, (width, number) in enumerate(zip(model_channels, num_blocks, strict=True)):
            blocks: list[nn.Module] = [ConvNeXtBlock(width) for _ in range(number)]
            if level + 1 < len(model_channels):
                blocks.append(UpsampleBlock(width, model_channels[level + 1], pred_subdiv))
            levels.append(nn.ModuleList(blocks))
        self.blocks = nn.ModuleList(levels)
        self.output_layer = nn.Linear(model_channels[-1], out_channels)

    @property
    def factor(self) -> int:
        """Finest resolution over that of the latent."""
        return int(2 ** (len(self.blocks) - 1))

    def _decode(
        self,
        latent: SparseTensor,
        told: Sequence[Subdivision] | None,
        max_voxels: int | None = None,
    ) -> tuple[SparseTensor, list[Subdivision]]:
        h = latent.replace(self.from_latent(latent.feats).to(trunk_dtype(self.blocks)))
        made = []
        for level, blocks in enumerate(self.blocks):
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                if not isinstance(block, UpsampleBlock):
                    h = block(h)
                    continue
                if told is None:
                    exists = block.subdivide(h)
                    _require_size(int(exists.sum()), level, max_voxels)
                    to = Subdivision.of(h.at, exists)
                else:
                    to = told[level]
                made.append(to)
                h = block(h, to)
        return h.replace(self.output_layer(final_norm(h.feats.to(latent.feats.dtype)))), made


class ShapeDecoder(Decoder):
    """A shape's latent to the 7 numbers per fine voxel that make a mesh, see `dual_grid`."""

    def __init__(
        self,
        *,
        latent_channels: int,
        model_channels: Sequence[int],
        num_blocks: Sequence[int],
        resolution: int | None = None,
    ) -> None:
        """`resolution` only documents the files."""
        super().__init__(
            out_channels=SHAPE_CHANNELS,
            latent_channels=latent_channels,
            model_channels=model_channels,
            num_blocks=num_blocks,
            pred_subdiv=True,
        )

    def forward(
        self, latent: SparseTensor, max_voxels: int | None = None
    ) -> tuple[SparseTensor, list[Subdivision]]:
        """Features (M, 7) at the finest voxels, and how they came about, coarse to fine.

        Raises:
            GenerationError: at some level no voxel is left, or there are more than `max_voxels`.
        """
        return self._decode(latent, None, max_voxels)


class TextureDecoder(Decoder):
    """A texture's latent to material (M, 6) at the voxels of a shape that was decoded before."""

    def __init__(
        self,
        *,
        latent_channels: int,
        model_channels: Sequence[int],
        num_blocks: Sequence[int],
        out_channels: int = MATERIAL_CHANNELS,
        resolution: int | None = None,
    ) -> None:
        """`resolution` only documents the files."""
        super().__init__(
            out_channels=out_channels,
            latent_channels=latent_channels,
            model_channels=model_channels,
            num_blocks=num_blocks,
            pred_subdiv=False,
        )

    def forward(self, latent: SparseTensor, subdivisions: Sequence[Subdivision]) -> SparseTensor:
        """Features (M, 6) at the finest voxels of `subdivisions`."""
        return self._decode(latent, subdivisions)[0]


def _require_size(total: int, level: int, limit: int | None) -> None:
    if total == 0:
        raise GenerationError(
            f"stage 'shape decoder' keeps no voxel at level {level + 1}; try another seed or prompt"
        )
    if limit is not None and total > limit:
        raise GenerationError(
            f"stage 'shape decoder' makes {total} voxels at level {level + 1}, more than the limit "
            f"of {limit}; try another seed or prompt, or raise max_voxels if memory allows"
        )
