"""Small pieces of English that captions, questions and edits share."""

from collections.abc import Sequence

import numpy as np

from .assembly import Part
from .objects import ToyObject

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven")


def article(phrase: str) -> str:
    """The phrase with "a" or "an" in front."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(name: str) -> bool:
    """Whether a part's name is a plural ("legs", not "grass")."""
    return name.endswith("s") and not name.endswith("ss")


def is_plural(toy: ToyObject, part: str) -> bool:
    """Whether the part is spoken of in the plural."""
    return plural(part) and toy.count != (part, 1)


def noun(toy: ToyObject, part: str) -> str:
    """The part's name, in the singular where there is but one of a counted part."""
    return part[:-1] if toy.count == (part, 1) else part


def verb(toy: ToyObject, part: str) -> str:
    """ "is" or "are", as the part asks."""
    return "are" if is_plural(toy, part) else "is"


def colored(toy: ToyObject, part: Part) -> str:
    """The part with colour, number and article: "a blue handle", "three brown legs"."""
    name = f"{part.color} {noun(toy, part.name)}"
    if toy.count is not None and toy.count[0] == part.name:
        return f"{NUMBERS[toy.count[1]]} {name}"
    return name if is_plural(toy, part.name) else article(name)


def joined(phrases: Sequence[str]) -> str:
    """The phrases as an enumeration."""
    if len(phrases) < 2:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """One of the choices."""
    return choices[int(rng.integers(len(choices)))]
