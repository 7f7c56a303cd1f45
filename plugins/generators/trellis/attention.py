"""Attention inside groups of tokens, and across to a context; projections as in the checkpoints.

Tokens of a batch lie in one flat (N, C) tensor, dense and sparse alike; the layout says which of
them belong together.

Legend: N tokens, H heads, D head width, B batch elements, S context tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .groups import Segments, TokenGroups


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over (..., L, H, D); mask (..., 1, 1, keys), True = real."""
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    if q.device.type == "cpu" and q.dtype is torch.bfloat16 and torch.is_grad_enabled():
        # The fused CPU kernel's bfloat16 backward is several times slower than plain products.
        score = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)
        if mask is not None:
            score = score.masked_fill(~mask, -math.inf)
        return (score.softmax(dim=-1) @ v).transpose(-3, -2)
    if q.device.type == "cpu" and not torch.is_grad_enabled():
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # pays where many keys are read
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(-3, -2)


def attend_in_groups(qkv: Tensor, groups: TokenGroups) -> Tensor:
    """Self-attention of qkv (N, 3, H, D) within each group, (N, H, D)."""
    packed = groups.pack(qkv)
    outputs = []
    for bucket in groups.buckets:
        rows = packed[bucket.start : bucket.start + bucket.size * bucket.length]
        q, k, v = rows.view(bucket.size, bucket.length, *qkv.shape[1:]).unbind(dim=2)
        outputs.append(attend(q, k, v, bucket.mask).flatten(0, 1))
    return groups.unpack(torch.cat(outputs) if len(outputs) != 1 else outputs[0])


def attend_across(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """Attention of tokens q (N, H, D) to their own batch element's k, v (B, S, H, D), (N, H, D)."""
    groups = segments.groups
    packed = groups.pack(q)
    outputs = []
    for bucket in groups.buckets:
        rows = packed[bucket.start : bucket.start + bucket.size * bucket.length]
        query = rows.view(bucket.size, bucket.length, *q.shape[1:])
        key, value = k, v
        if len(groups.buckets) > 1:
            key, value = k[bucket.groups], v[bucket.groups]
        outputs.append(attend(query, key, value).flatten(0, 1))
    return groups.unpack(torch.cat(outputs) if len(outputs) != 1 else outputs[0])


class MultiHeadRMSNorm(nn.Module):
    """x / ||x|| * gamma * sqrt(D) per head, in float32."""

    def __init__(self, head_dim: int, num_heads: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(num_heads, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x (..., H, D)."""
        scale = self.gamma.float() * math.sqrt(x.shape[-1])
        return (F.normalize(x.float(), dim=-1) * scale).to(x.dtype)


class SelfAttention(nn.Module):
    """Self-attention within groups: all tokens of a batch element, or windows."""

    def __init__(self, channels: int, num_heads: int, qk_rms_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)
        self.q_rms_norm: MultiHeadRMSNorm | None = None
        self.k_rms_norm: MultiHeadRMSNorm | None = None
        if qk_rms_norm:
            self.q_rms_norm = MultiHeadRMSNorm(channels // num_heads, num_heads)
            self.k_rms_norm = MultiHeadRMSNorm(channels // num_heads, num_heads)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values (N, 3, H, D) of tokens (N, C)."""
        qkv: Tensor = self.to_qkv(x).view(len(x), 3, self.num_heads, -1)
        if self.q_rms_norm is None or self.k_rms_norm is None:
            return qkv
        q, k, v = qkv.unbind(dim=1)
        return torch.stack([self.q_rms_norm(q), self.k_rms_norm(k), v], dim=1)

    def forward(self, x: Tensor, groups: TokenGroups) -> Tensor:
        """Tokens (N, C) after attending within their groups."""
        out: Tensor = self.to_out(attend_in_groups(self.project(x), groups).flatten(1))
        return out


@dataclass(frozen=True)
class KeysValues:
    """A context as one cross-attention layer reads it: keys and values, both (B, S, H, D).

    Batch elements beyond B have an all-zero context. All keys are then equal, attention is
    uniform, and every query receives the same `to_out(value bias)`: nothing needs computing.
    """

    keys: Tensor
    values: Tensor


class CrossAttention(nn.Module):
    """Attention from tokens to the context of their batch element."""

    def __init__(
        self, channels: int, context_channels: int, num_heads: int, qk_rms_norm: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels)
        self.to_kv = nn.Linear(context_channels, 2 * channels)
        self.to_out = nn.Linear(channels, channels)
        self.q_rms_norm: MultiHeadRMSNorm | None = None
        self.k_rms_norm: MultiHeadRMSNorm | None = None
        if qk_rms_norm:
            self.q_rms_norm = MultiHeadRMSNorm(channels // num_heads, num_heads)
            self.k_rms_norm = MultiHeadRMSNorm(channels // num_heads, num_heads)

    def read(self, context: Tensor) -> KeysValues:
        """Keys and values of a context (B, S, C)."""
        kv = self.to_kv(context).view(*context.shape[:2], 2, self.num_heads, -1)
        keys, values = kv.unbind(dim=2)
        if self.k_rms_norm is not None:
            keys = self.k_rms_norm(keys)
        return KeysValues(keys, values)

    def forward(self, x: Tensor, context: KeysValues, segments: Segments) -> Tensor:
        """What tokens (N, C) read; the last batch elements may lack context, see `KeysValues`."""
        with_context = segments.first(len(context.keys))
        num_rows = sum(with_context.counts)
        parts = []
        if num_rows:
            q = self.to_q(x[:num_rows]).view(num_rows, self.num_heads, -1)
            if self.q_rms_norm is not None:
                q = self.q_rms_norm(q)
            out = attend_across(q, context.keys, context.values, with_context)
            parts.append(self.to_out(out.reshape(num_rows, -1)))
        if num_rows < len(x):
            value_bias = self.to_kv.bias[self.to_q.out_features :]
            parts.append(self.to_out(value_bias).to(x.dtype).expand(len(x) - num_rows, -1))
        return torch.cat(parts) if len(parts) != 1 else parts[0]
