"""Token spaces: which are joined by a lossless map, and how a point is put back on its manifold."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from modalign.specs import SpaceMap
from modalign.tokens import TokenStream, TokenStreamSpec

LAYERNORM_EPS = 1e-5  # of the affine-free LayerNorm that TRELLIS and GAP3D apply


def normalisation(space: str) -> str:
    """The middle part of `<encoder>/<normalisation>[@<resolution>]`; empty if there is none."""
    return space.partition("/")[2].partition("@")[0]


def connect(
    source: TokenStreamSpec, target: TokenStreamSpec, maps: Iterable[SpaceMap]
) -> Callable[[TokenStream], TokenStream] | None:
    """A function that carries streams of `source` to `target`, or None if nothing lossless does.

    Equal spaces need equal layouts too; a registered map is used in either direction.
    """
    if source == target:
        return dict
    for space_map in maps:
        if (space_map.source_space, space_map.target_space) == (source.space, target.space):
            return space_map.forward
        if (space_map.target_space, space_map.source_space) == (source.space, target.space):
            return space_map.inverse
    return None


def project(spec: TokenStreamSpec, stream: TokenStream) -> TokenStream:
    """The nearest stream that the encoder of `spec` could have made, as far as its space tells.

    Tokens of an affine-free LayerNorm space get mean 0 and variance 1 over D; others are unchanged.
    """
    if normalisation(spec.space) != "layernorm":
        return dict(stream)
    from torch.nn.functional import layer_norm

    return {
        name: layer_norm(tokens.float(), tokens.shape[-1:], eps=LAYERNORM_EPS).to(tokens.dtype)
        for name, tokens in stream.items()
    }
