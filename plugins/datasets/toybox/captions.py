"""Captions that are true: short ones of about 20 tokens, long ones of 60 to 120."""

import numpy as np

from .objects import ToyObject
from .phrases import NUMBERS, article, colored, joined, noun, pick, plural, verb
from .scenery import Scenery

NUM_SHORT, NUM_LONG = 6, 4

# Words a long caption has at least; about four tokens for three words.
_SHORTEST = 50


def short(toy: ToyObject, scenery: Scenery | None, rng: np.random.Generator) -> list[str]:
    """Six different one-line captions; all name family and main colour, most the second's."""
    found: list[str] = []
    while len(found) < NUM_SHORT:
        # One caption in six says nothing of the second part, as people often do.
        caption = _bare(toy, rng) if len(found) == 2 else _line(toy, rng)
        if scenery is not None and rng.random() < 0.5:
            caption = f"{caption}{_setting(scenery, rng)}"
        if caption not in found:
            found.append(caption)
    return found


def long(toy: ToyObject, scenery: Scenery | None, rng: np.random.Generator) -> list[str]:
    """Four different captions of several sentences about every part and the surroundings."""
    return [_story(toy, scenery, rng) for _ in range(NUM_LONG)]


def _named(toy: ToyObject, *words: str) -> str:
    return article(" ".join([*words, toy.family]))


def _size(toy: ToyObject) -> list[str]:
    return [toy.adjective] if toy.adjective else []


def _bare(toy: ToyObject, rng: np.random.Generator) -> str:
    size = _size(toy)
    return pick(
        rng,
        (
            _named(toy, *size, toy.color),
            f"{_named(toy, *size)} in {toy.color}",
            f"{_named(toy, toy.color)} of simple shape",
            f"one {' '.join([*size, toy.color, toy.family])}",
            f"a picture of {_named(toy, *size, toy.color)}",
            f"this {toy.family} is mostly {toy.color}",
        ),
    )


def _line(toy: ToyObject, rng: np.random.Generator) -> str:
    part = toy.second
    if part is None:
        return _bare(toy, rng)
    size = _size(toy) if rng.random() < 0.8 else []
    name, is_, main = noun(toy, part.name), verb(toy, part.name), toy.parts[0]
    with_second = colored(toy, part)
    extras = [colored(toy, other) for other in toy.parts[1:] if other is not part]
    rng.shuffle(extras)
    listed = joined([with_second, *extras[: rng.integers(3)]])
    return pick(
        rng,
        (
            f"{_named(toy, *size, toy.color)} with {with_second}",
            f"{_named(toy, *size, toy.color)} with {listed}",
            f"{_named(toy, *size, toy.color)} that has {listed}",
            f"{toy.family}, {toy.color}, its {name} {is_} {part.color}",
            f"{_named(toy, *size)} in {toy.color} with {listed}",
            f"{_named(toy, *size)}: {colored(toy, main)}, {joined([with_second, *extras[:2]])}",
            f"{_named(toy, *size)} with {joined([colored(toy, main), with_second])}",
            f"{toy.color} {toy.family}, {part.color} {name}",
            f"the {toy.family} is {toy.color} and its {name} {is_} {part.color}",
            f"{_named(toy, *size, toy.color)}, and its {name} {is_} {part.color}",
            f"a 3d model of {_named(toy, *size, toy.color)} with {listed}",
            f"{_named(toy, *size, toy.color)} whose {name} {is_} {part.color}",
            f"{part.color} {name} on {_named(toy, *size, toy.color)}",
            f"a toy: {_named(toy, *size, toy.color)} with {listed}",
        ),
    )


def _setting(scenery: Scenery, rng: np.random.Generator) -> str:
    other = scenery.companion
    if other is not None and rng.random() < 0.7:
        thing = _named(other.toy, other.toy.color)
        return pick(
            rng, (f", next to {thing}", f", {thing} on its {other.side}", f", beside {thing}")
        )
    return pick(
        rng,
        (
            f" on a {_ground(scenery)}",
            f" in front of a {_backdrop(scenery)}",
            f", standing on a {_ground(scenery)}",
            f" in a room with a {scenery.wall} wall",
        ),
    ).replace(" a orange", " an orange")


def _ground(scenery: Scenery) -> str:
    return _pattern(scenery.floor_pattern) + f"{scenery.floor} floor"


def _backdrop(scenery: Scenery) -> str:
    return _pattern(scenery.wall_pattern) + f"{scenery.wall} wall"


def _pattern(pattern: str) -> str:
    return "" if pattern == "plain" else f"{pattern} "


def _story(toy: ToyObject, scenery: Scenery | None, rng: np.random.Generator) -> str:
    sentences = [_opening(toy, rng), *_parts(toy, rng), *_remarks(toy, rng)]
    if scenery is not None:
        sentences += _surroundings(scenery, rng)
    fillers = [
        f"each part of the {toy.family} has one plain colour.",
        "the shapes are simple and smooth, like those of a toy.",
        f"the main colour of the {toy.family} is {toy.color}.",
        f"it is a clean model of {_named(toy, toy.color)} without any small details.",
        "nothing on it is broken or missing.",
        "all the surfaces are plain, without any text or pattern.",
    ]
    rng.shuffle(fillers)
    while sum(len(sentence.split()) for sentence in sentences) < _SHORTEST:
        sentences.append(fillers.pop())
    return " ".join(sentences)


def _opening(toy: ToyObject, rng: np.random.Generator) -> str:
    thing = _named(toy, *_size(toy), toy.color)
    if toy.second is not None and rng.random() < 0.7:
        thing = f"{thing} with {colored(toy, toy.second)}"
    return pick(
        rng,
        (
            f"this is {thing}.",
            f"{thing}.",
            f"the picture shows {thing}.",
            f"here we see {thing}.",
            f"a simple 3d model of {thing}.",
            f"imagine {thing}.",
        ),
    )


def _parts(toy: ToyObject, rng: np.random.Generator) -> list[str]:
    sentences = []
    for part in toy.parts:
        name, is_, place = noun(toy, part.name), verb(toy, part.name), toy.kind.places[part.name]
        sentence = pick(
            rng,
            (
                f"the {name} {is_} {part.color} and {place}.",
                f"the {part.color} {name} {is_} {place}.",
                f"its {name}, {place}, {is_} {part.color}.",
                f"the colour of the {name}, {place}, is {part.color}.",
                f"it has {colored(toy, part)}, {place}.",
                f"there {is_} {colored(toy, part)}, {place}.",
            ),
        )
        sentences.append(sentence)
    if rng.random() < 0.4:
        tail = sentences[1:]
        rng.shuffle(tail)
        sentences[1:] = tail
    return sentences


def _remarks(toy: ToyObject, rng: np.random.Generator) -> list[str]:
    remarks = []
    if toy.count is not None:
        part, number = toy.count
        is_ = verb(toy, part)
        remarks.append(
            pick(
                rng,
                (
                    f"there {is_} {NUMBERS[number]} {noun(toy, part)} in total.",
                    f"the number of {part} is {NUMBERS[number]}.",
                    f"one can count {NUMBERS[number]} {noun(toy, part)}.",
                ),
            )
        )
    absent = [name for name in (toy.kind.optional or ()) if toy.part(name) is None]
    if absent and rng.random() < 0.6:
        name = pick(rng, absent)
        remarks.append(
            pick(rng, (f"it has no {name}.", f"there is no {name}.", f"the {name} is left out."))
            if not plural(name)
            else pick(rng, (f"it has no {name}.", f"there are no {name}."))
        )
    if toy.adjective is not None:
        remarks.append(
            pick(
                rng,
                (
                    f"overall it is rather {toy.adjective}.",
                    f"for {article(toy.family)} it looks {toy.adjective}.",
                    f"its proportions are {toy.adjective}.",
                ),
            )
        )
    return remarks


def _surroundings(scenery: Scenery, rng: np.random.Generator) -> list[str]:
    floor, wall = article(_ground(scenery)), article(_backdrop(scenery))
    sentences = [
        pick(
            rng,
            (
                f"it stands on {floor} in front of {wall}.",
                f"below it is {floor}, behind it {wall}.",
                f"the scene has {floor} and {wall}.",
            ),
        ),
        pick(rng, (f"the light is {scenery.mood}.", f"{scenery.mood} light falls on it.")),
    ]
    if scenery.companion is not None:
        other = scenery.companion.toy
        thing, side = _named(other, other.color), scenery.companion.side
        sentences.append(
            pick(
                rng,
                (
                    f"on the {side} of it there is {thing}.",
                    f"next to it, on the {side}, we see {thing}.",
                    f"{thing} stands on its {side}.",
                ),
            )
        )
    return sentences
