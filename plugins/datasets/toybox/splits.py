"""Which colours a family may wear in which split."""

from .families import FAMILIES
from .palette import COLORS

SPLITS = ("train", "val", "test", "compositional")


def held_out(family: str) -> tuple[str, str]:
    """The two main colours that a family wears in the compositional split and nowhere else.

    A step of 5 visits all 12 colours before it repeats, so every colour is held out about equally
    often; the second colour is half the circle away.
    """
    start = 5 * FAMILIES.index(family)
    return COLORS[start % 12], COLORS[(start + 6) % 12]


def main_colors(family: str, split: str) -> tuple[str, ...]:
    """The main colours that a family may wear in a split.

    Raises:
        ValueError: The split does not exist.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} does not exist; use one of {', '.join(SPLITS)}")
    kept = held_out(family)
    if split == "compositional":
        return kept
    return tuple(color for color in COLORS if color not in kept)
