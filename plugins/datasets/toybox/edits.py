"""Edit instructions with the edited object as truth."""

from dataclasses import dataclass

import numpy as np

from .objects import ToyObject
from .palette import COLORS
from .phrases import article, noun, pick, plural
from .splits import main_colors


@dataclass(frozen=True, eq=False)
class Edit:
    """What to change, in words, and the object that results."""

    instruction: str
    object: ToyObject


def propose(toy: ToyObject, split: str, rng: np.random.Generator) -> list[Edit]:
    """One edit of each kind the object allows: recolour it, recolour a part, remove, add.

    A new main colour is one that the split allows for the family.
    """
    color = pick(rng, [c for c in main_colors(toy.family, split) if c != toy.color])
    forms = (
        f"make it {color}",
        f"make the {toy.family} {color}",
        f"paint the {noun(toy, toy.parts[0].name)} {color}",
        f"change its colour to {color}",
    )
    found = [Edit(pick(rng, forms), toy.recolored(toy.parts[0].name, color))]
    if len(toy.parts) > 1:
        # The second part half of the time, because it can be seen from everywhere.
        k = 1 if rng.random() < 0.5 else int(rng.integers(1, len(toy.parts)))
        found.append(_recolor(toy, k, rng))
    present = [part.name for part in toy.parts if part.name in toy.variation.extras]
    if present:
        name = pick(rng, present)
        removals = (f"remove the {name}", f"take away the {name}")
        found.append(Edit(pick(rng, removals), toy.without(name)))
    absent = [name for name in toy.kind.optional or () if name not in toy.variation.extras]
    if absent:
        found.append(_add(toy, pick(rng, absent), rng))
    return found


def _recolor(toy: ToyObject, index: int, rng: np.random.Generator) -> Edit:
    part = toy.parts[index]
    color = pick(rng, [c for c in COLORS if c != part.color])
    name = noun(toy, part.name)
    forms = (
        f"make the {name} {color}",
        f"paint the {name} {color}",
        f"change the colour of the {name} to {color}",
    )
    return Edit(pick(rng, forms), toy.recolored(part.name, color))


def _add(toy: ToyObject, name: str, rng: np.random.Generator) -> Edit:
    color = pick(rng, COLORS)
    thing = f"{color} {name}" if plural(name) else article(f"{color} {name}")
    forms = (f"add {thing}", f"give it {thing}")
    return Edit(pick(rng, forms), toy.having(name, color))
