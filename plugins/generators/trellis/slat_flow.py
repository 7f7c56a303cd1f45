"""The flow model of the structured latent: convolutions into tokens, a DiT, convolutions out.

Legend: N voxels, B batch elements, S context tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import (
    FlowContext,
    ModulatedBlock,
    final_norm,
    init_transformer,
    init_zero,
    trunk_dtype,
)
from .embedders import TimestepEmbedder, embed_positions
from .layers import SparseResBlock3d
from .sparse import SparseTensor


class SLatFlowModel(nn.Module):
    """Velocity of voxel features, given the time and a condition.

    Args:
        resolution: of the voxel grid; only documents the model, coordinates carry their own range.
        patch_size: by how much the convolutions coarsen the grid before the transformer.
        num_io_res_blocks: residual blocks per level on the way in, and on the way out.
        io_block_channels: widths of the levels; one level for each halving.
    """

    def __init__(
        self,
        *,
        resolution: int,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        cond_channels: int,
        num_blocks: int,
        num_heads: int,
        io_block_channels: Sequence[int],
        mlp_ratio: float = 4,
        patch_size: int = 2,
        num_io_res_blocks: int = 2,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
    ) -> None:
        super().__init__()
        if patch_size != 2 ** len(io_block_channels):
            raise ValueError(
                f"patch_size {patch_size} needs log2 of it as many io_block_channels, "
                f"got {list(io_block_channels)}"
            )
        self.resolution = resolution
        self.in_channels = in_channels
        self.t_embedder = TimestepEmbedder(model_channels)
        self.input_layer = nn.Linear(in_channels, io_block_channels[0])
        widths = list(io_block_channels)
        ends = [*widths[1:], model_channels]  # width after each level

        self.input_blocks = nn.ModuleList()
        for width, end in zip(widths, ends, strict=True):
            for _ in range(num_io_res_blocks - 1):
                self.input_blocks.append(SparseResBlock3d(width, model_channels, width))
            self.input_blocks.append(SparseResBlock3d(width, model_channels, end, "down"))
        self.blocks = nn.ModuleList(
            ModulatedBlock(
                model_channels, cond_channels, num_heads, mlp_ratio, qk_rms_norm, qk_rms_norm_cross
            )
            for _ in range(num_blocks)
        )
        self.out_blocks = nn.ModuleList()
        for width, end in zip(reversed(widths), reversed(ends), strict=True):
            self.out_blocks.append(SparseResBlock3d(end * 2, model_channels, width, "up"))
            for _ in range(num_io_res_blocks - 1):
                self.out_blocks.append(SparseResBlock3d(width * 2, model_channels, width))
        self.out_layer = nn.Linear(io_block_channels[0], out_channels)

        init_transformer(self.input_layer)
        init_transformer(self.blocks)
        for block in self.blocks:
            assert isinstance(block, ModulatedBlock)
            init_zero(block.adaLN_modulation)
        init_zero(self.out_layer)

    def read(self, condition: Tensor) -> FlowContext:
        """What the blocks need of a condition (B, S, C); reusable for every step of a sampling."""
        return FlowContext.of(self.blocks, condition, len(condition))

    def forward(self, x: SparseTensor, t: Tensor, condition: Tensor | FlowContext) -> SparseTensor:
        """Velocity (N, out_channels) of voxel features x at times t (B,), from 0 to 1000.

        A condition is (B, S, C), or (1, S, C) for all; only a `FlowContext` may cover fewer.

        Raises:
            ValueError: the condition has another batch size.
        """
        context = FlowContext.of(self.blocks, condition, x.at.batch_size)
        dtype = trunk_dtype(self.blocks)
        h = x.replace(self.input_layer(x.feats).to(dtype))
        t_embedding = self.t_embedder(t).to(dtype)

        skips = [h]  # the input of every block, so that going up knows its voxels
        for block in self.input_blocks:
            h = block(h, t_embedding)
            skips.append(h)
        position = embed_positions(h.at.coords[:, 1:], h.feats.shape[1]).to(dtype)
        tokens = h.feats + position
        for block, layer in zip(self.blocks, context.layers, strict=True):
            tokens = block(tokens, t_embedding, layer, h.at.segments)
        h = h.replace(tokens)
        for block in self.out_blocks:
            skip = skips.pop()
            h = h.replace(torch.cat([h.feats, skip.feats], dim=1))
            h = block(h, t_embedding, like=skips[-1])
        return x.replace(self.out_layer(final_norm(h.feats.to(x.feats.dtype))))
