"""The flow model of the sparse structure: a dense DiT over a small latent grid.

Legend: B batch elements, R grid resolution, p patch size, C channels.
"""

from __future__ import annotations

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
from .groups import Segments


def patchify(x: Tensor, patch: int) -> Tensor:
    """Grid (B, C, R, R, R) as tokens (B, (R / p)^3, C p^3), x-major; channel-major inside."""
    batch, channels, resolution = x.shape[:3]
    side = resolution // patch
    x = x.reshape(batch, channels, side, patch, side, patch, side, patch)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, side**3, channels * patch**3)


def unpatchify(tokens: Tensor, patch: int, side: int) -> Tensor:
    """Undo `patchify`: tokens (B, side^3, C p^3) to a grid (B, C, R, R, R)."""
    batch, channels = tokens.shape[0], tokens.shape[-1] // patch**3
    x = tokens.reshape(batch, side, side, side, channels, patch, patch, patch)
    x = x.permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(batch, channels, side * patch, side * patch, side * patch)


class SparseStructureFlowModel(nn.Module):
    """Velocity of a latent grid, given the time and a condition."""

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
        mlp_ratio: float = 4,
        patch_size: int = 1,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.side = resolution // patch_size
        axis = torch.arange(self.side)
        positions = torch.cartesian_prod(axis, axis, axis)
        self.pos_emb: Tensor
        self.register_buffer("pos_emb", embed_positions(positions, model_channels))
        self.t_embedder = TimestepEmbedder(model_channels)
        self.input_layer = nn.Linear(in_channels * patch_size**3, model_channels)
        self.blocks = nn.ModuleList(
            ModulatedBlock(
                model_channels, cond_channels, num_heads, mlp_ratio, qk_rms_norm, qk_rms_norm_cross
            )
            for _ in range(num_blocks)
        )
        self.out_layer = nn.Linear(model_channels, out_channels * patch_size**3)
        init_transformer(self.input_layer)
        init_transformer(self.blocks)
        for block in self.blocks:
            assert isinstance(block, ModulatedBlock)
            init_zero(block.adaLN_modulation)
        init_zero(self.out_layer)

    def read(self, condition: Tensor) -> FlowContext:
        """What the blocks need of a condition (B, S, C); reusable for every step of a sampling."""
        return FlowContext.of(self.blocks, condition, len(condition))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | FlowContext) -> Tensor:
        """Velocity (B, C, R, R, R) of a latent grid x at times t (B,), which run from 0 to 1000.

        A condition is (B, S, C), or (1, S, C) for all; only a `FlowContext` may cover fewer.

        Raises:
            ValueError: the condition has another batch size.
        """
        batch = len(x)
        context = FlowContext.of(self.blocks, condition, batch)
        h = self.input_layer(patchify(x, self.patch_size)) + self.pos_emb  # (B, tokens, C)
        dtype = trunk_dtype(self.blocks)
        segments = Segments([self.side**3] * batch, x.device)
        h = h.flatten(0, 1).to(dtype)
        t_embedding = self.t_embedder(t).to(dtype)
        for block, layer in zip(self.blocks, context.layers, strict=True):
            h = block(h, t_embedding, layer, segments)
        out = self.out_layer(final_norm(h.to(x.dtype)))
        return unpatchify(out.view(batch, self.side**3, -1), self.patch_size, self.side)
