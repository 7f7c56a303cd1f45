"""Objects of the toybox: named, coloured parts with exact geometry."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .assembly import Assembly, Part
from .families import CATALOGUE, FAMILIES
from .palette import COLORS
from .solids import hull
from .splits import main_colors
from .variation import NUM_FREE, Family, Variation

# A dial further than this from its middle has a word ("tall"); nearer it, saying so would mislead.
WORDED = 0.4


@dataclass(frozen=True, eq=False)
class ToyObject(Assembly):
    """An object, centred at the origin, the longest side of its bounding box exactly 1.

    The first part is the main one; its colour is the object's colour. z is up, the front looks
    along -y, all lengths are fractions of the longest side.
    """

    family: str
    variation: Variation

    @cached_property
    def kind(self) -> Family:
        """The family's record."""
        return CATALOGUE[self.family]

    @property
    def color(self) -> str:
        """Name of the main part's colour."""
        return self.parts[0].color

    @property
    def second(self) -> Part | None:
        """The second most visible part, unless an edit removed it."""
        return next((part for part in self.parts if part.name == self.kind.second), None)

    @property
    def adjective(self) -> str | None:
        """The word for the object's proportions, if they are marked."""
        low, high = self.kind.words
        if abs(self.variation.dial) < WORDED:
            return None
        return high if self.variation.dial > 0 else low

    @property
    def count(self) -> tuple[str, int] | None:
        """The counted part and its number, for families that have one."""
        part = self.kind.counted
        return None if part is None else (part, self.variation.count)

    def part(self, name: str) -> Part | None:
        """The part of that name, if the object has it."""
        return next((part for part in self.parts if part.name == name), None)

    def recolored(self, name: str, color: str) -> "ToyObject":
        """This object with one part in another colour."""
        if self.part(name) is None:
            raise ValueError(f"the {self.family} has no part {name!r}")
        parts = (replace(part, color=color) if part.name == name else part for part in self.parts)
        return replace(self, parts=tuple(parts))

    def without(self, name: str) -> "ToyObject":
        """This object without an optional part, normalised again."""
        if name not in self.variation.extras:
            raise ValueError(f"the {self.family} has no optional part {name!r} to remove")
        colors = {part.name: part.color for part in self.parts}
        extras = self.variation.extras - {name}
        return build(self.family, replace(self.variation, extras=extras), colors)

    def having(self, name: str, color: str) -> "ToyObject":
        """This object with an absent optional part added in a colour, normalised again."""
        if name not in (self.kind.optional or ()) or name in self.variation.extras:
            raise ValueError(f"the {self.family} has no absent optional part {name!r} to add")
        colors = {part.name: part.color for part in self.parts} | {name: color}
        extras = self.variation.extras | {name}
        return build(self.family, replace(self.variation, extras=extras), colors)


def build(family: str, variation: Variation, colors: Mapping[str, str]) -> ToyObject:
    """The object of a family with these choices and the colour of each part."""
    pieces = CATALOGUE[family].build(variation)
    raw = [solid for solids in pieces.values() for solid in solids]
    shape = hull(raw)
    low, high = shape.bounds()
    lowest, highest = low.min(axis=0), high.max(axis=0)
    scale = 1 / float((highest - lowest).max())
    offset = -(lowest + highest) / 2 * np.float32(scale)
    parts = tuple(
        Part(name, colors[name], tuple(solid.moved(scale, offset) for solid in solids))
        for name, solids in pieces.items()
    )
    return ToyObject(parts, shape.moved(scale, offset), family, variation)


def sample(rng: np.random.Generator, split: str, family: str | None = None) -> ToyObject:
    """A random object with a main colour that the split allows."""
    if family is None:
        family = FAMILIES[rng.integers(len(FAMILIES))]
    kind = CATALOGUE[family]
    optional = kind.optional or {}
    variation = Variation(
        dial=float(rng.uniform(-1, 1)),
        count=int(rng.integers(kind.counts[0], kind.counts[1] + 1)),
        extras=frozenset(name for name, share in optional.items() if rng.random() < share),
        free=tuple(float(value) for value in rng.random(NUM_FREE)),
    )
    allowed = main_colors(family, split)
    main = allowed[rng.integers(len(allowed))]
    colors = dict.fromkeys(kind.places, main)
    for name in tuple(kind.places)[1:]:
        # Few parts share the main colour, so that naming it is nearly always worth a word.
        others = [color for color in COLORS if color != main]
        if rng.random() > 0.06:
            colors[name] = others[rng.integers(len(others))]
    return build(family, variation, colors)
