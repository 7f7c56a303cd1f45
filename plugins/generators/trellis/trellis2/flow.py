"""The flow models: transformers over voxels whose places turn their queries and keys.

One trunk serves the dense grid of the structure and the voxels of both latents: a grid is a set of
voxels without gaps.

Legend: N tokens, B batch elements, S context tokens, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from modalign_plugins.generators.trellis.attention import (
    CrossAttention,
    KeysValues,
    SelfAttention,
    attend_in_groups,
)
from modalign_plugins.generators.trellis.blocks import (
    FeedForward,
    FlowContext,
    block_norm,
    final_norm,
    init_transformer,
    init_zero,
    trunk_dtype,
)
from modalign_plugins.generators.trellis.embedders import MAX_PERIOD, TimestepEmbedder
from modalign_plugins.generators.trellis.groups import Segments
from modalign_plugins.generators.trellis.sparse import SparseTensor
from torch import Tensor, nn


def rotation_angles(xyz: Tensor, head_dim: int) -> Tensor:
    """Angles (N, D / 2) by which places (N, 3) turn the pairs of a head, float32.

    D // 6 frequencies 10000^(-j/n) per axis, axes one after the other; pairs that are left over at
    the end are not turned.
    """
    num_frequencies = head_dim // 2 // 3
    order = torch.arange(num_frequencies, dtype=torch.float32, device=xyz.device)
    frequency = 1.0 / MAX_PERIOD ** (order / num_frequencies)
    angle = (xyz.float()[:, :, None] * frequency).flatten(1)
    return nn.functional.pad(angle, (0, head_dim // 2 - angle.shape[1]))


def rotate(x: Tensor, turns: Sequence[Tensor]) -> Tensor:
    """Turn neighbouring pairs of x (N, ..., H, D) by (cos, sin) of (N, D / 2), in float32."""
    cos, sin = (
        part.view(len(part), *(1,) * (x.ndim - 2), -1) for part in turns
    )  # (N, 1, ..., D / 2)
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


class RotarySelfAttention(SelfAttention):
    """Self-attention whose queries and keys are normalised, then turned by their places."""

    def turned(self, x: Tensor, turns: Sequence[Tensor]) -> Tensor:
        """Queries, keys and values (N, 3, H, D) of tokens (N, C)."""
        qkv = self.project(x)
        return torch.cat([rotate(qkv[:, :2], turns), qkv[:, 2:]], dim=1)


class Block(nn.Module):
    """Self-attention, cross-attention, MLP; a modulation that all blocks share, plus its own."""

    def __init__(
        self, channels: int, context_channels: int, num_heads: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.norm1 = block_norm(channels, affine=False)
        self.norm2 = block_norm(channels, affine=True)
        self.norm3 = block_norm(channels, affine=False)
        self.self_attn = RotarySelfAttention(channels, num_heads, qk_rms_norm=True)
        self.cross_attn = CrossAttention(channels, context_channels, num_heads, qk_rms_norm=True)
        self.mlp = FeedForward(channels, mlp_ratio)
        self.modulation = nn.Parameter(torch.zeros(6 * channels))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        context: KeysValues,
        segments: Segments,
        turns: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Tokens (N, C) given the shared modulation (B, 6C) and what the context says."""
        modulation = (modulation + self.modulation).to(x.dtype)
        qkv = segments.each_row(self._project, modulation, x, *turns)
        attended = attend_in_groups(qkv, segments.groups).flatten(1)
        x = segments.each_row(self._join, modulation, x, attended)
        x = x + self.cross_attn(self.norm2(x), context, segments)
        return segments.each_row(self._feed_forward, modulation, x)

    def _project(self, modulation: Tensor, x: Tensor, *turns: Tensor) -> Tensor:
        shift, scale, *_ = modulation.chunk(6, dim=-1)
        return self.self_attn.turned(self.norm1(x) * (1 + scale) + shift, turns)

    def _join(self, modulation: Tensor, x: Tensor, attended: Tensor) -> Tensor:
        gate = modulation.chunk(6, dim=-1)[2]
        return x + self.self_attn.to_out(attended) * gate

    def _feed_forward(self, modulation: Tensor, x: Tensor) -> Tensor:
        *_, shift, scale, gate = modulation.chunk(6, dim=-1)
        h = self.norm3(x) * (1 + scale) + shift
        return x + self.mlp(h) * gate


class RotaryTransformer(nn.Module):
    """The trunk: voxel features, a time and a condition to a velocity per voxel.

    Args:
        resolution: of the voxel grid.
        in_channels: what a voxel has on the way in; a condition per voxel comes last.
        mlp_ratio: hidden width over width, rounded down: 5.3334 makes 8192 of 1536.
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
        mlp_ratio: float = 4,
    ) -> None:
        super().__init__()
        if model_channels % (2 * num_heads):
            raise ValueError(f"{num_heads} heads of even width do not divide {model_channels}")
        self.resolution = resolution
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.head_dim = model_channels // num_heads
        self.t_embedder = TimestepEmbedder(model_channels)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(model_channels, 6 * model_channels)
        )
        self.input_layer = nn.Linear(in_channels, model_channels)
        self.blocks = nn.ModuleList(
            Block(model_channels, cond_channels, num_heads, mlp_ratio) for _ in range(num_blocks)
        )
        self.out_layer = nn.Linear(model_channels, out_channels)
        init_transformer(self.input_layer)
        init_transformer(self.blocks)
        init_zero(self.adaLN_modulation)
        init_zero(self.out_layer)

    def read(self, condition: Tensor) -> FlowContext:
        """What the blocks need of a condition (B, S, C); reusable for every step of a sampling."""
        return FlowContext.of(self.blocks, condition, len(condition))

    def velocity(
        self, x: Tensor, t: Tensor, context: FlowContext, xyz: Tensor, segments: Segments
    ) -> Tensor:
        """Velocities (N, out_channels) of features x (N, in_channels) at places xyz (N, 3)."""
        dtype = trunk_dtype(self.blocks)
        angle = rotation_angles(xyz, self.head_dim)
        turns = angle.cos(), angle.sin()
        modulation = self.adaLN_modulation(self.t_embedder(t)).to(dtype)
        h = self.input_layer(x).to(dtype)
        for block, layer in zip(self.blocks, context.layers, strict=True):
            h = block(h, modulation, layer, segments, turns)
        out: Tensor = self.out_layer(final_norm(h.float()).to(self.out_layer.weight.dtype))
        return out


class StructureFlowModel(RotaryTransformer):
    """Velocity of a dense latent grid: every cell is a voxel."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | FlowContext) -> Tensor:
        """Velocity (B, C, R, R, R) of a latent grid x at times t (B,), which run from 0 to 1000.

        A condition is (B, S, C), or (1, S, C) for all; only a `FlowContext` may cover fewer.

        Raises:
            ValueError: the condition has another batch size.
        """
        batch, side = len(x), self.resolution
        context = FlowContext.of(self.blocks, condition, batch)
        axis = torch.arange(side, device=x.device)
        xyz = torch.cartesian_prod(axis, axis, axis).repeat(batch, 1)
        tokens = x.flatten(2).transpose(1, 2).flatten(0, 1)  # (B R^3, C), x-major
        v = self.velocity(tokens, t, context, xyz, Segments([side**3] * batch, x.device))
        return v.view(batch, side**3, -1).transpose(1, 2).unflatten(2, (side,) * 3)


class LatentFlowModel(RotaryTransformer):
    """Velocity of voxel features; what is known of every voxel may stand beside them."""

    def forward(
        self,
        x: SparseTensor,
        t: Tensor,
        condition: Tensor | FlowContext,
        known: Tensor | None = None,
    ) -> SparseTensor:
        """Velocity (N, out_channels) of voxel features x at times t (B,), from 0 to 1000.

        `known` (N, in_channels - out_channels) is put behind x's features: the texture's model
        reads the shape's latent there. A condition is (B, S, C), or (1, S, C) for all; only a
        `FlowContext` may cover fewer.

        Raises:
            ValueError: the condition has another batch size.
        """
        context = FlowContext.of(self.blocks, condition, x.at.batch_size)
        feats = x.feats if known is None else torch.cat([x.feats, known], dim=1)
        return x.replace(self.velocity(feats, t, context, x.at.coords[:, 1:], x.at.segments))
