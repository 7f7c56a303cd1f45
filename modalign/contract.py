"""The contract between parts on plain data: one pair in a table, and all pairs in a matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modalign.spaces import refusal, route
from modalign.specs import EncoderSpec, GeneratorSpec, SpaceMap, VLMSpec
from modalign.tokens import LAYERNORM_EPS, TokenStreamSpec

# The middle part of a space's name, in words.
NORMALISATIONS = {
    "layernorm": f"LayerNorm without gain or bias (eps {LAYERNORM_EPS:g}): mean 0, variance 1",
    "affine-layernorm": "the encoder's own final LayerNorm, with its gain and bias",
    "": "none",
}


def pair_rows(
    encoder: EncoderSpec, generator: GeneratorSpec, maps: Iterable[SpaceMap]
) -> list[tuple[str, str, str]]:
    """(what, the encoder's side, the generator's side) of everything the two must agree on.

    The first row is the verdict: how streams get from one to the other, or why they cannot.
    """
    made, read = encoder.stream, generator.accepts
    way = route(made, read, maps)
    if way is None:
        verdict = ("refused", refusal(made, read))
    else:
        verdict = ("works", way.words + ("; one-way" if way.one_way else ""))
    return [
        ("pair", *verdict),
        ("space", made.space, read.space),
        ("groups", groups(made), groups(read)),
        ("normalisation", in_words(made.normalisation), in_words(read.normalisation)),
        ("preprocessing", encoder.preprocessing, "of its conditions: the encoder's"),
        ("null condition", "", generator.null_condition),
        ("image domain", "", generator.image_domain),
        ("source", encoder.source, generator.source),
        ("licence", encoder.license, generator.license),
    ]


def groups(stream: TokenStreamSpec) -> str:
    """Groups, their shapes and widths: "cls 1 of 1024, patches 37x37 of 1024"."""
    return ", ".join(
        f"{group.name} {'x'.join(map(str, group.shape)) or '1'} of {group.dim}"
        for group in stream.groups
    )


def in_words(normalised: str) -> str:
    """What a space's middle part stands for; itself where it needs no words."""
    return NORMALISATIONS.get(normalised, normalised)


def matrix(
    vlms: Mapping[str, VLMSpec],
    encoders: Mapping[str, EncoderSpec],
    generators: Mapping[str, GeneratorSpec],
    maps: Iterable[SpaceMap],
) -> str:
    """Every language model x encoder x generator as Markdown: what works, and why others do not.

    A language model meets an encoder only through a head that is trained for the two, so whether a
    triple works depends on its encoder and generator alone; models are listed once.
    """
    known = list(maps)
    names = sorted(generators)
    lines = [
        "| encoder | " + " | ".join(f"`{name}`" for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    reasons: dict[str, str] = {}
    for encoder in sorted(encoders):
        cells = []
        for generator in names:
            ends = encoders[encoder].stream, generators[generator].accepts
            way = route(*ends, known)
            if way is None:
                mark = reasons.setdefault(_kind(refusal(*ends)), _letter(len(reasons)))
                cells.append(f"no ({mark})")
            else:
                cells.append("yes" if not way.maps and not way.one_way else f"yes: {way.words}")
        lines.append(f"| `{encoder}` | " + " | ".join(cells) + " |")
    reading = ", ".join(f"`{name}`" for name in sorted(vlms))
    lines += ["", f"Each line holds for every language model: {reading}.", ""]
    lines += [f"- ({mark}) {why}" for why, mark in reasons.items()]
    return "\n".join(lines).rstrip() + "\n"


def _kind(reason: str) -> str:
    """A reason without the names in it: they stand in the row and the column."""
    if "are different networks" in reason:
        return "different networks: their tokens mean different things even where shapes agree"
    return reason


def _letter(index: int) -> str:
    return chr(ord("a") + index)
