"""What a pair must agree on, and which pairs do."""

from __future__ import annotations

from dataclasses import replace

from modalign import EncoderSpec, GeneratorSpec, SpaceMap, TokenGroup, TokenStreamSpec, installed
from modalign.contract import matrix, pair_rows

GROUPS = (
    TokenGroup(name="cls", shape=(), dim=6),
    TokenGroup(name="patches", shape=(2, 3), dim=6),
)


def stream(space: str, groups: tuple[TokenGroup, ...] = GROUPS) -> TokenStreamSpec:
    return TokenStreamSpec(space=space, groups=groups)


def encoder(name: str, space: str) -> EncoderSpec:
    return EncoderSpec(
        name=name,
        build=dict,
        stream=stream(space),
        preprocessing="28 px, bicubic",
        license="MIT",
        source="a/b",
    )


def generator(name: str, space: str, groups: tuple[TokenGroup, ...] = GROUPS) -> GeneratorSpec:
    return GeneratorSpec(
        name=name,
        build=dict,
        accepts=stream(space, groups),
        null_condition="zeros",
        image_domain="black",
        license="Apache-2.0",
    )


AFFINE = SpaceMap(
    name="affine",
    summary="the norm's gain and bias",
    source_stream=stream("a/layernorm@28"),
    target_stream=stream("a/affine-layernorm@28"),
    build=lambda **options: (dict, dict),
)


def test_a_pair_is_shown_with_all_it_must_agree_on() -> None:
    rows = pair_rows(
        encoder("one", "a/layernorm@28"), generator("two", "a/affine-layernorm@28"), [AFFINE]
    )
    assert {what: sides for what, *sides in rows} == {
        "pair": ["works", "the norm's gain and bias"],
        "space": ["a/layernorm@28", "a/affine-layernorm@28"],
        "groups": ["cls 1 of 6, patches 2x3 of 6"] * 2,
        "normalisation": [
            "LayerNorm without gain or bias (eps 1e-05): mean 0, variance 1",
            "the encoder's own final LayerNorm, with its gain and bias",
        ],
        "preprocessing": ["28 px, bicubic", "of its conditions: the encoder's"],
        "null condition": ["", "zeros"],
        "image domain": ["", "black"],
        "source": ["a/b", ""],
        "licence": ["MIT", "Apache-2.0"],
    }


def test_a_pair_that_does_not_fit_is_shown_with_the_reason() -> None:
    rows = pair_rows(encoder("one", "a/layernorm@28"), generator("two", "b/layernorm@28"), [])
    assert rows[0][:2] == ("pair", "refused")
    assert "'a' and 'b' are different networks" in rows[0][2]


def test_what_is_lost_on_the_way_is_said() -> None:
    rows = pair_rows(
        encoder("one", "a/layernorm@28"), generator("two", "a/layernorm@28", GROUPS[1:]), []
    )
    assert rows[0] == ("pair", "works", "drops cls; one-way")


def test_the_matrix_names_every_encoder_generator_and_language_model() -> None:
    vlm = installed().get("vlms", "qwen2.5-vl-mini")
    shown = matrix(
        {"m": replace(vlm, name="m"), "n": replace(vlm, name="n")},
        {"e": encoder("e", "a/layernorm@28"), "f": encoder("f", "f/layernorm@28")},
        {
            "g": generator("g", "a/layernorm@28"),
            "h": generator("h", "a/affine-layernorm@28"),
            "i": generator("i", "a/layernorm@56"),
        },
        [AFFINE],
    )
    assert shown == (
        "| encoder | `g` | `h` | `i` |\n"
        "|---|---|---|---|\n"
        "| `e` | yes | yes: the norm's gain and bias | no (a) |\n"
        "| `f` | no (b) | no (b) | no (b) |\n"
        "\n"
        "Each line holds for every language model: `m`, `n`.\n"
        "\n"
        "- (a) the same network at another resolution: other patches, other numbers\n"
        "- (b) different networks: their tokens mean different things even where shapes agree\n"
    )
