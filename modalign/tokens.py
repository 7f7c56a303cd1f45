"""Token streams: named groups of tokens with a declared layout, in a named space.

The shape legend of the whole project:

    B  batch            S  soft tokens or condition length    C  condition width
    K  tokens of one group      N  tokens of a stream         D  feature width
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from torch import Tensor

LAYERNORM_EPS = 1e-5  # of the affine-free LayerNorm that TRELLIS and GAP3D apply
TokenStream = dict[str, "Tensor"]
"""One tensor (B, K, D) per group, keyed by the group's name, in the order of its spec."""


class TokenGroup(BaseModel):
    """Tokens of one role: a class token, registers, a grid of patches.

    `shape` has no axis for a single vector, one axis for an unordered or ordered list, and two for
    tokens that have a place (row, column): only those get a rotary position.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    shape: tuple[int, ...] = Field(max_length=2)
    dim: int = Field(gt=0)

    @model_validator(mode="after")
    def _axes_are_positive(self) -> TokenGroup:
        if any(axis <= 0 for axis in self.shape):
            raise ValueError(f"group {self.name!r} has shape {self.shape}; every axis must be > 0")
        return self

    @property
    def num_tokens(self) -> int:
        """K, the number of tokens in this group."""
        return math.prod(self.shape)

    @property
    def has_place(self) -> bool:
        """Whether tokens lie on a grid, row-major."""
        return len(self.shape) == 2


class TokenStreamSpec(BaseModel):
    """The layout of a stream and the space its numbers live in.

    `space` is `<encoder>/<normalisation>[@<resolution>]`: two streams of equal shape are
    interchangeable only if their spaces are equal, or a registered map joins them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: str = Field(min_length=1)
    groups: tuple[TokenGroup, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> TokenStreamSpec:
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise ValueError(f"space {self.space!r} names a group twice: {names}")
        return self

    @property
    def encoder(self) -> str:
        """Whose tokens they are: the first part of `<encoder>/<normalisation>[@<resolution>]`."""
        return self.space.partition("/")[0].partition("@")[0]

    @property
    def normalisation(self) -> str:
        """The middle part of `<encoder>/<normalisation>[@<resolution>]`; empty if there is none."""
        return self.space.partition("/")[2].partition("@")[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Group names in stream order."""
        return tuple(group.name for group in self.groups)

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens of all groups together."""
        return sum(group.num_tokens for group in self.groups)

    @property
    def num_values(self) -> int:
        """Numbers in one sample of the stream; the size that a time shift depends on."""
        return sum(group.num_tokens * group.dim for group in self.groups)

    def group(self, name: str) -> TokenGroup:
        """The group called `name`.

        Raises:
            KeyError: there is none; the message lists the groups.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(f"space {self.space!r} has groups {self.names}, not {name!r}")

    def pack(self, stream: Mapping[str, Tensor]) -> Tensor:
        """One tensor (B, N, D), groups in spec order. All groups must share one dim."""
        import torch

        self.check(stream)
        return torch.cat([stream[name] for name in self.names], dim=1)

    def split(self, tokens: Tensor) -> TokenStream:
        """The stream inside one tensor (B, N, D); the inverse of `pack`.

        Raises:
            ValueError: the tensor has another number of tokens or another width.
        """
        import torch

        dims = {group.dim for group in self.groups}
        if tokens.ndim != 3 or tokens.shape[1] != self.num_tokens or {tokens.shape[2]} != dims:
            raise ValueError(
                f"space {self.space!r} packs to (B, {self.num_tokens}, {'/'.join(map(str, dims))}),"
                f" got {tuple(tokens.shape)}"
            )
        parts = torch.split(tokens, [group.num_tokens for group in self.groups], dim=1)
        return dict(zip(self.names, parts, strict=True))

    def project(self, stream: Mapping[str, Tensor]) -> TokenStream:
        """The nearest stream that the encoder could have made, as far as its space tells.

        Tokens of an affine-free LayerNorm space get mean 0 and variance 1 over D; others are
        unchanged.
        """
        if self.normalisation != "layernorm":
            return dict(stream)
        from torch.nn.functional import layer_norm

        return {
            name: layer_norm(tokens.float(), tokens.shape[-1:], eps=LAYERNORM_EPS).to(tokens.dtype)
            for name, tokens in stream.items()
        }

    def check(self, stream: Mapping[str, Tensor]) -> None:
        """Accept `stream` if it has exactly this layout and one batch size.

        Raises:
            ValueError: a group is missing, unknown, or of another shape.
        """
        if tuple(stream) != self.names:
            raise ValueError(
                f"space {self.space!r} has groups {self.names} in this order, got {tuple(stream)}"
            )
        batch = {tensor.shape[0] for tensor in stream.values() if tensor.ndim}
        for group in self.groups:
            got = tuple(stream[group.name].shape)
            if len(got) != 3 or got[1:] != (group.num_tokens, group.dim):
                raise ValueError(
                    f"group {group.name!r} of space {self.space!r} must be "
                    f"(B, {group.num_tokens}, {group.dim}), got {got}"
                )
        if len(batch) != 1:
            raise ValueError(f"groups of one stream differ in batch size: {sorted(batch)}")
