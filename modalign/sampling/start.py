"""Sampling from a given stream in place of noise alone: how much of it changes, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modalign.tokens import TokenStream, TokenStreamSpec


@dataclass(frozen=True)
class Start:
    """A stream x_1 that sampling starts from.

    Attributes:
        stream: tokens (B, K, D) of each group, in the head's space.
        strength: how much of the steps is sampled: 0 returns the stream, 1 starts from noise.
        keep: tokens that stay, bool (K,) or (B, K), by group; a group that is left out changes
            whole. At each time they are what the path from the same noise to the stream holds.

    Raises:
        ValueError: the strength is not within 0..1, or `keep` does not fit the stream.
    """

    stream: TokenStream
    strength: float = 1.0
    keep: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength must be within 0..1, got {self.strength}")
        for name, mask in self.keep.items():
            if name not in self.stream:
                raise ValueError(
                    f"keep names group {name!r}, but the stream has {', '.join(self.stream)}"
                )
            shape = tuple(self.stream[name].shape[:2])
            if mask.dtype != torch.bool or tuple(mask.shape) not in (shape, shape[1:]):
                raise ValueError(
                    f"keep of group {name!r} must be bool {shape[1:]} or {shape}, "
                    f"got {mask.dtype} {tuple(mask.shape)}"
                )

    def for_batch(self, batch: int, spec: TokenStreamSpec) -> Start:
        """The same for `batch` samples; a stream of one is shared by all.

        Raises:
            ValueError: the stream has another layout, or another batch size.
        """
        spec.check(self.stream)
        count = len(self.stream[spec.names[0]])
        if count not in (1, batch):
            raise ValueError(f"a start of {count} samples cannot serve a batch of {batch}")
        stream = {
            name: tokens.expand(batch, *tokens.shape[1:]) for name, tokens in self.stream.items()
        }
        keep = {name: mask.expand(batch, stream[name].shape[1]) for name, mask in self.keep.items()}
        return Start(stream, self.strength, keep)

    def noised(self, noise: TokenStream, level: float) -> TokenStream:
        """x_t on the path from `noise` to the stream, at noise level 1 - t."""
        return {
            name: level * tokens + (1 - level) * self.stream[name].to(tokens)
            for name, tokens in noise.items()
        }

    def keeping(self, x: TokenStream, kept: TokenStream) -> TokenStream:
        """`kept` at the tokens that stay, x at the others."""
        return {
            name: torch.where(self.keep[name][..., None].to(tokens.device), kept[name], tokens)
            if name in self.keep
            else tokens
            for name, tokens in x.items()
        }

    def settled(self, x: TokenStream) -> TokenStream:
        """The result x with what stays exactly as in the stream: all of it at strength 0."""
        own = {name: self.stream[name].to(tokens) for name, tokens in x.items()}
        return own if self.strength == 0 else self.keeping(x, own)
