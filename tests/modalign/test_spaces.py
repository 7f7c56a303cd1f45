"""Spaces: which are joined, and what lies on them."""

from __future__ import annotations

import pytest
import torch

from modalign import SpaceMap, TokenGroup, TokenStreamSpec
from modalign.spaces import connect, normalisation, project

GROUPS = (
    TokenGroup(name="cls", shape=(1,), dim=6),
    TokenGroup(name="patches", shape=(2, 2), dim=6),
)


def spec(space: str, groups: tuple[TokenGroup, ...] = GROUPS) -> TokenStreamSpec:
    return TokenStreamSpec(space=space, groups=groups)


def draw(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    packed = 3 + 2 * torch.randn(2, 5, 6, generator=generator)
    return spec("test/any").split(packed)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("dinov2-vitl14-reg/layernorm@518", "layernorm"),
        ("dinov2/affine", "affine"),
        ("points", ""),
        ("points@512", ""),
    ],
)
def test_a_space_names_its_normalisation(space: str, expected: str) -> None:
    assert normalisation(space) == expected


def test_equal_spaces_are_joined_by_nothing() -> None:
    joined = connect(spec("a/layernorm@28"), spec("a/layernorm@28"), [])
    assert joined is not None
    stream = draw()
    assert joined(stream) == stream


@pytest.mark.parametrize("space", ["a/affine@28", "a/layernorm@56", "b/layernorm@28"])
def test_another_encoder_normalisation_or_resolution_is_another_space(space: str) -> None:
    assert connect(spec("a/layernorm@28"), spec(space), []) is None


def test_one_space_with_two_layouts_is_not_joined() -> None:
    assert connect(spec("a/layernorm@28"), spec("a/layernorm@28", GROUPS[:1]), []) is None


def test_a_registered_map_joins_in_both_directions() -> None:
    def forward(stream):
        return {name: 2 * tokens for name, tokens in stream.items()}

    def inverse(stream):
        return {name: tokens / 2 for name, tokens in stream.items()}

    doubling = SpaceMap(
        name="double", source_space="a/x", target_space="b/y", forward=forward, inverse=inverse
    )
    there, back = (
        connect(spec(one), spec(other), [doubling])
        for one, other in (("a/x", "b/y"), ("b/y", "a/x"))
    )
    assert (there, back) == (forward, inverse)
    stream = draw()
    assert all(back(there(stream))[name].equal(stream[name]) for name in stream)


def test_projection_gives_mean_0_and_variance_1_once_and_for_all() -> None:
    """Of each token over D; a second projection changes nothing beyond the epsilon."""
    space = spec("a/layernorm@28")
    once = project(space, draw())
    for name, tokens in once.items():
        torch.testing.assert_close(
            tokens.mean(-1), torch.zeros(tokens.shape[:2]), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            tokens.var(-1, correction=0), torch.ones(tokens.shape[:2]), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(project(space, once)[name], tokens, atol=1e-4, rtol=0)


def test_projection_leaves_other_spaces_alone() -> None:
    stream = draw()
    kept = project(spec("a/affine@28"), stream)
    assert all(kept[name] is stream[name] for name in stream)


def test_projection_keeps_the_precision_it_was_given() -> None:
    half = {name: tokens.bfloat16() for name, tokens in draw().items()}
    assert all(t.dtype == torch.bfloat16 for t in project(spec("a/layernorm"), half).values())
