"""What varies within a family, and what a family is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .solids import Solid

# Free proportions per object that no caption names.
NUM_FREE = 4

Parts = dict[str, list[Solid]]


@dataclass(frozen=True)
class Variation:
    """The choices that, with a family, fix an object's geometry.

    `dial` in [-1, 1] is the family's named proportion, `count` its counted part's number, `extras`
    the optional parts present, `free` further proportions in [0, 1].
    """

    dial: float
    count: int
    extras: frozenset[str]
    free: tuple[float, ...]

    def between(self, low: float, high: float) -> float:
        """The dial mapped to a range."""
        return low + (high - low) * (self.dial + 1) / 2

    def freely(self, index: int, low: float, high: float) -> float:
        """A free proportion mapped to a range."""
        return low + (high - low) * self.free[index]

    def has(self, part: str) -> bool:
        """Whether an optional part is present."""
        return part in self.extras


@dataclass(frozen=True)
class Family:
    """A kind of object.

    Args:
        name: What captions call it.
        build: Solids by part name in any frame and size; the first part is the main one, the
            second always present in sampled objects.
        places: Every part's place in words, in the order of `build`.
        words: Adjectives for the low and the high end of the dial.
        optional: Parts that may be left out, with how often they are present.
        counted: The part whose number varies.
        counts: The smallest and largest number of it.
    """

    name: str
    build: Callable[[Variation], Parts]
    places: Mapping[str, str]
    words: tuple[str, str] = ("short", "tall")
    optional: Mapping[str, float] | None = None
    counted: str | None = None
    counts: tuple[int, int] = (1, 1)

    @property
    def main(self) -> str:
        """Name of the part whose colour is the object's colour."""
        return tuple(self.places)[0]

    @property
    def second(self) -> str:
        """Name of the second most visible part."""
        return tuple(self.places)[1]
