"""Questions about an object with answers of one word or two."""

import numpy as np

from .objects import ToyObject
from .phrases import NUMBERS, article, noun, pick, plural, verb


def ask(toy: ToyObject, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Questions and answers: the kind, every colour, the count, optional parts, proportions."""
    pairs = [
        (pick(rng, ("what is it?", "what is this?", "which object is shown?")), toy.family),
        (
            pick(
                rng,
                (f"what colour is the {toy.family}?", f"which colour is the {toy.family}?"),
            ),
            toy.color,
        ),
    ]
    for part in toy.parts:
        name, is_ = noun(toy, part.name), verb(toy, part.name)
        forms = (f"what colour {is_} the {name}?", f"which colour {is_} the {name}?")
        pairs.append((pick(rng, forms), part.color))
    if toy.count is not None:
        part_name, number = toy.count
        forms = (
            f"how many {part_name} does it have?",
            f"how many {part_name} does the {toy.family} have?",
        )
        pairs.append((pick(rng, forms), NUMBERS[number]))
    for name in toy.kind.optional or ():
        thing = f"are there {name}" if plural(name) else f"is there {article(name)}"
        pairs.append((f"{thing}?", "no" if toy.part(name) is None else "yes"))
    if toy.adjective is not None:
        low, high = toy.kind.words
        pairs.append((f"is the {toy.family} {low} or {high}?", toy.adjective))
    return pairs
