"""Transformer blocks over flat tokens: modulated (flow models) and plain windowed (SLAT VAE).

Legend: N tokens, B batch elements, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import CrossAttention, KeysValues, SelfAttention, attend_in_groups
from .groups import Segments, TokenGroups
from .rows import each_row

BLOCK_NORM_EPS = 1e-6
FINAL_NORM_EPS = 1e-5


class LayerNorm32(nn.LayerNorm):
    """Layer norm over channels, computed in float32, returned in the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x (..., C)."""
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def block_norm(channels: int, affine: bool) -> LayerNorm32:
    """The norm inside blocks."""
    return LayerNorm32(channels, eps=BLOCK_NORM_EPS, elementwise_affine=affine)


def final_norm(x: Tensor) -> Tensor:
    """The norm before an output layer: no affine, and another epsilon than inside blocks."""
    return F.layer_norm(x, x.shape[-1:], eps=FINAL_NORM_EPS)


def init_transformer(module: nn.Module) -> None:
    """Xavier weights and zero biases for every linear layer below `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_zero(layer: nn.Module) -> None:
    """Zero every parameter of a layer, so that what it feeds starts as the identity or zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class FeedForward(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, channels: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transformed tokens (N, C)."""
        out: Tensor = self.mlp(x)
        return out


class ModulatedBlock(nn.Module):
    """Self-attention, cross-attention, MLP; time modulates the first and the last (adaLN-zero)."""

    def __init__(
        self,
        channels: int,
        context_channels: int,
        num_heads: int,
        mlp_ratio: float,
        qk_rms_norm: bool,
        qk_rms_norm_cross: bool,
    ) -> None:
        super().__init__()
        self.norm1 = block_norm(channels, affine=False)
        self.norm2 = block_norm(channels, affine=True)
        self.norm3 = block_norm(channels, affine=False)
        self.self_attn = SelfAttention(channels, num_heads, qk_rms_norm)
        self.cross_attn = CrossAttention(channels, context_channels, num_heads, qk_rms_norm_cross)
        self.mlp = FeedForward(channels, mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(channels, 6 * channels))

    def forward(
        self, x: Tensor, t_embedding: Tensor, context: KeysValues, segments: Segments
    ) -> Tensor:
        """Tokens (N, C) given times (B, C) and what the context says."""
        modulation = self.adaLN_modulation(t_embedding)  # (B, 6 C)
        qkv = segments.each_row(self._project, modulation, x)
        attended = attend_in_groups(qkv, segments.groups).flatten(1)
        x = segments.each_row(self._join, modulation, x, attended)
        x = x + self.cross_attn(self.norm2(x), context, segments)
        return segments.each_row(self._feed_forward, modulation, x)

    def _project(self, modulation: Tensor, x: Tensor) -> Tensor:
        shift, scale, *_ = modulation.chunk(6, dim=-1)
        return self.self_attn.project(torch.addcmul(shift, self.norm1(x), 1 + scale))

    def _join(self, modulation: Tensor, x: Tensor, attended: Tensor) -> Tensor:
        gate = modulation.chunk(6, dim=-1)[2]
        return torch.addcmul(x, self.self_attn.to_out(attended), gate)

    def _feed_forward(self, modulation: Tensor, x: Tensor) -> Tensor:
        *_, shift, scale, gate = modulation.chunk(6, dim=-1)
        h = torch.addcmul(shift, self.norm3(x), 1 + scale)
        return torch.addcmul(x, self.mlp(h), gate)


class WindowedBlock(nn.Module):
    """Windowed self-attention and MLP, pre-norm, no modulation."""

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = block_norm(channels, affine=False)
        self.norm2 = block_norm(channels, affine=False)
        self.attn = SelfAttention(channels, num_heads)
        self.mlp = FeedForward(channels, mlp_ratio)

    def forward(self, x: Tensor, groups: TokenGroups) -> Tensor:
        """Tokens (N, C) after attending within their windows."""
        qkv = each_row(self._project, x)
        attended = attend_in_groups(qkv, groups).flatten(1)
        return each_row(self._finish, x, attended)

    def _project(self, x: Tensor) -> Tensor:
        return self.attn.project(self.norm1(x))

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.attn.to_out(attended)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class FlowContext:
    """A condition (B, S, C) as every block of one flow model reads it, computed once per sampling.

    Where a model is called with more batch elements than B, the remaining ones have the all-zero
    context of the unconditional branch, see `KeysValues`.
    """

    def __init__(self, layers: list[KeysValues]) -> None:
        self.layers = layers

    @classmethod
    def of(
        cls, blocks: nn.ModuleList, condition: Tensor | FlowContext, batch_size: int
    ) -> FlowContext:
        """What `blocks` read for a batch: a context as it is, or that of a condition (B, S, C).

        Raises:
            ValueError: the condition is neither of that batch size nor of one for all.
        """
        if isinstance(condition, FlowContext):
            return condition
        if len(condition) not in (1, batch_size):
            raise ValueError(f"a condition of {len(condition)} for a batch of {batch_size}")
        condition = condition.to(trunk_dtype(blocks))
        layers = []
        for block in blocks:
            layer = block.cross_attn.read(condition)
            shape = (batch_size, -1, -1, -1)
            layers.append(KeysValues(layer.keys.expand(shape), layer.values.expand(shape)))
        return cls(layers)


def trunk_dtype(blocks: nn.Module) -> torch.dtype:
    """The type the blocks compute in; input and output layers stay in float32."""
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            return module.weight.dtype
    raise AssertionError("a trunk without linear layers")
