"""Layouts of streams."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from modalign import TokenGroup, TokenStreamSpec

SPEC = TokenStreamSpec(
    space="test/layernorm@28",
    groups=(
        TokenGroup(name="cls", shape=(), dim=6),
        TokenGroup(name="registers", shape=(3,), dim=6),
        TokenGroup(name="patches", shape=(2, 4), dim=6),
    ),
)


def test_counts_follow_from_shapes() -> None:
    assert [group.num_tokens for group in SPEC.groups] == [1, 3, 8]
    assert (SPEC.num_tokens, SPEC.num_values) == (12, 72)
    assert [group.has_place for group in SPEC.groups] == [False, False, True]


def test_split_inverts_pack() -> None:
    tokens = torch.randn(2, 12, 6)
    stream = SPEC.split(tokens)
    assert {name: tuple(part.shape) for name, part in stream.items()} == {
        "cls": (2, 1, 6),
        "registers": (2, 3, 6),
        "patches": (2, 8, 6),
    }
    assert torch.equal(SPEC.pack(stream), tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cls": torch.zeros(2, 2, 6)}, r"'cls'.*\(B, 1, 6\), got \(2, 2, 6\)"),
        ({"extra": torch.zeros(2, 1, 6)}, "has groups"),
        ({"cls": torch.zeros(3, 1, 6)}, "differ in batch size"),
    ],
)
def test_check_names_the_group_and_both_shapes(change: dict, message: str) -> None:
    stream = SPEC.split(torch.zeros(2, 12, 6)) | change
    with pytest.raises(ValueError, match=message):
        SPEC.check(stream)


def test_a_layout_with_a_doubled_or_empty_group_is_refused() -> None:
    with pytest.raises(ValidationError, match="names a group twice"):
        TokenStreamSpec(space="x", groups=(SPEC.groups[0], SPEC.groups[0]))
    with pytest.raises(ValidationError, match="every axis must be > 0"):
        TokenGroup(name="patches", shape=(0, 3), dim=4)


def test_split_says_what_it_got() -> None:
    with pytest.raises(ValueError, match=r"packs to \(B, 12, 6\), got \(2, 11, 6\)"):
        SPEC.split(torch.zeros(2, 11, 6))


def of(space: str) -> TokenStreamSpec:
    return SPEC.model_copy(update={"space": space})


def draw() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return SPEC.split(3 + 2 * torch.randn(2, 12, 6, generator=generator))


@pytest.mark.parametrize(
    ("space", "encoder", "normalisation"),
    [
        ("dinov2-vitl14-reg/layernorm@518", "dinov2-vitl14-reg", "layernorm"),
        ("dinov2/affine", "dinov2", "affine"),
        ("points", "points", ""),
        ("points@512", "points", ""),
    ],
)
def test_a_space_names_its_encoder_and_normalisation(
    space: str, encoder: str, normalisation: str
) -> None:
    assert (of(space).encoder, of(space).normalisation) == (encoder, normalisation)


def test_projection_gives_mean_0_and_variance_1_once_and_for_all() -> None:
    """Of each token over D; a second projection changes nothing beyond the epsilon."""
    once = SPEC.project(draw())
    for name, tokens in once.items():
        torch.testing.assert_close(
            tokens.mean(-1), torch.zeros(tokens.shape[:2]), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            tokens.var(-1, correction=0), torch.ones(tokens.shape[:2]), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(SPEC.project(once)[name], tokens, atol=1e-4, rtol=0)


def test_projection_leaves_other_spaces_alone() -> None:
    stream = draw()
    kept = of("a/affine@28").project(stream)
    assert all(kept[name] is stream[name] for name in stream)


def test_projection_keeps_the_precision_it_was_given() -> None:
    half = {name: tokens.bfloat16() for name, tokens in draw().items()}
    assert all(t.dtype == torch.bfloat16 for t in SPEC.project(half).values())
