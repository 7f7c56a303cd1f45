"""The transformer block of `TokenStreamDiT`: gated self- and cross-attention, then SwiGLU.

Source: facts of the released GAP3D network, section 1.2 (Lumina-Next, 2406.18583).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from modalign.models.rotary import rotate
from modalign.recipe import DiTConfig

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one cross-attention, each (B, heads, S, head_dim)."""


class RMSNorm(nn.Module):
    """Root-mean-square norm over D whose gain is the weight times a modulation (B, 1, D)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """`x` (B, N, D) normalised; statistics in float32."""
        gain = self.weight if modulation is None else self.weight * modulation
        return F.rms_norm(x, x.shape[-1:], eps=self.eps) * gain


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention output (B, N, heads, head_dim) of `query` (B, N, heads, head_dim).

    Keys and values are (B, kv_heads, S, head_dim); each is read by consecutive query heads.
    """
    groups = query.shape[2] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key, value, attn_mask=mask, scale=scale
    )
    return out.transpose(1, 2)


class SelfAttention(nn.Module):
    """Attention among all tokens of a stream, without an output projection of its own."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim, self.num_heads = config.hidden_size, config.num_heads
        self.head_dim = dim // config.num_heads
        kv_dim = (config.num_kv_heads or config.num_heads) * self.head_dim
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, kv_dim, bias=False)
        self.to_v = nn.Linear(dim, kv_dim, bias=False)
        self.norm_q = nn.LayerNorm(dim)
        self.norm_k = nn.LayerNorm(kv_dim)

    def forward(self, x: Tensor, rotary: Tensor, scale: float) -> Tensor:
        """(B, N, heads, head_dim) from tokens (B, N, D)."""
        heads = (-1, self.head_dim)
        query = rotate(self.norm_q(self.to_q(x)).unflatten(-1, heads), rotary)
        key = rotate(self.norm_k(self.to_k(x)).unflatten(-1, heads), rotary)
        value = self.to_v(x).unflatten(-1, heads)
        return attend(query, key.transpose(1, 2), value.transpose(1, 2), scale=scale)


class CrossAttention(nn.Module):
    """Attention of all tokens to the condition; only queries are rotated."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_heads
        self.to_q = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm_q = nn.LayerNorm(config.hidden_size)

    def forward(self, x: Tensor, rotary: Tensor, context: KeyValue, mask: Tensor | None) -> Tensor:
        """(B, N, heads, head_dim) from tokens (B, N, D)."""
        query = rotate(self.norm_q(self.to_q(x)).unflatten(-1, (-1, self.head_dim)), rotary)
        return attend(query, *context, mask)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim, inner = config.hidden_size, config.inner_dim
        self.gate = nn.Linear(dim, inner, bias=False)
        self.up = nn.Linear(dim, inner, bias=False)
        self.down = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) from (B, N, D)."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Block(nn.Module):
    """One block: tokens and condition are attended in parallel, joined by a gate per head."""

    def __init__(self, config: DiTConfig, modulation_dim: int) -> None:
        super().__init__()
        dim, eps = config.hidden_size, config.norm_eps
        self.modulation = nn.Linear(modulation_dim, 4 * dim)
        self.attention_norm = RMSNorm(dim, eps)
        self.self_attention = SelfAttention(config)
        self.cross_attention = CrossAttention(config)
        # Closed at first: the condition then enters through the modulation alone.
        self.cross_gate = nn.Parameter(torch.zeros(config.num_heads))
        self.attention_out = nn.Linear(dim, dim, bias=False)
        self.attention_out_norm = RMSNorm(dim, eps)
        self.feed_forward_norm = RMSNorm(dim, eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_out_norm = RMSNorm(dim, eps)

    def forward(
        self,
        x: Tensor,
        signal: Tensor,
        rotary: Tensor,
        context: KeyValue,
        mask: Tensor | None,
        scale: float,
    ) -> Tensor:
        """Tokens (B, N, D) after this block; `signal` (B, T) modulates it."""
        parts = self.modulation(signal)[:, None].chunk(4, dim=-1)  # each (B, 1, D)
        attention_scale, attention_gate, mlp_scale, mlp_gate = parts
        y = self.attention_norm(x, 1 + attention_scale)
        heads = self.self_attention(y, rotary, scale)
        heads = heads + self.cross_gate.tanh()[:, None] * self.cross_attention(
            y, rotary, context, mask
        )
        y = self.attention_out(heads.flatten(-2))
        x = x + self.attention_out_norm(y, attention_gate.tanh())
        y = self.feed_forward(self.feed_forward_norm(x, 1 + mlp_scale))
        out: Tensor = x + self.feed_forward_out_norm(y, mlp_gate.tanh())
        return out
