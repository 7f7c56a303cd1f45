"""What the toybox says is true: captions, questions, edits."""

import re

import numpy as np
import pytest
from modalign_plugins.datasets.toybox import COLORS, FAMILIES, Toybox, sample

BOX = Toybox(seed=0)
WORDS = re.compile(r"[a-z0-9]+")


def _colors(text):
    return {word for word in WORDS.findall(text) if word in COLORS}


def test_short_captions_name_family_main_and_mostly_second_colour_and_no_other():
    named = []
    for index in range(300):
        toy = BOX.object(index)
        captions = BOX.captions(index)
        assert len(set(captions)) == len(captions) >= 4
        for caption in captions:
            assert toy.family in caption
            assert toy.color in _colors(caption)
            assert _colors(caption) <= {part.color for part in toy.parts}
            assert 3 <= len(WORDS.findall(caption)) <= 24
            named.append(toy.second.color in _colors(caption))
    assert np.mean(named) >= 0.8


def test_long_captions_name_every_part_with_its_colour():
    for index in range(120):
        toy = BOX.object(index)
        captions = BOX.captions(index, length="long")
        assert len(set(captions)) == len(captions) >= 4
        for caption in captions:
            assert toy.family in caption
            assert _colors(caption) == {part.color for part in toy.parts}
            for part in toy.parts:
                sentences = [s for s in re.split(r"[.:] ?", caption) if part.color in _colors(s)]
                assert any(part.name.rstrip("s") in sentence for sentence in sentences)
            # A tokenizer makes about 1.3 tokens of a word and its punctuation.
            assert 46 <= len(WORDS.findall(caption)) <= 96


def test_scene_captions_speak_of_the_companion_that_is_seen():
    seen = 0
    for index in range(60):
        picture = BOX.scene(index, size=64)
        companion = picture.scenery.companion
        for caption in picture.descriptions:
            assert picture.scenery.floor in caption
            if companion is not None:
                assert companion.toy.family in caption
                assert companion.side in caption
        if companion is not None:
            x = np.nonzero(picture.part_ids == -2)[1]
            main = np.nonzero(picture.part_ids >= 0)[1]
            assert len(x) > 0.01 * 64**2
            assert (companion.side == "left") == (x.mean() < main.mean())
            seen += 1
    assert seen > 5


def test_size_words_and_numbers_are_true():
    for family in FAMILIES:
        rng = np.random.default_rng(4)
        for _ in range(6):
            toy = sample(rng, "train", family)
            low, high = toy.kind.words
            expected = {low: toy.variation.dial < -0.4, high: toy.variation.dial > 0.4}
            assert expected.get(toy.adjective, abs(toy.variation.dial) < 0.4)


def test_the_vocabulary_is_small():
    words = set()
    for index in range(200):
        picture = BOX.scene(index, size=2)
        texts = [*BOX.captions(index), *BOX.captions(index, length="long")]
        texts += [*picture.captions, *picture.descriptions]
        texts += [text for pair in BOX.questions(index) for text in pair]
        texts += [edit.instruction for edit in BOX.edits(index)]
        for text in texts:
            assert text == text.lower()
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  | \.", text), text
            words |= set(WORDS.findall(text))
    assert len(words) < 600


def test_answers_are_true():
    asked = set()
    for index in range(200):
        toy = BOX.object(index)
        for question, answer in BOX.questions(index):
            first = question.split()[0]
            asked.add(first)
            if match := re.fullmatch(r"(?:what|which) colour (?:is|are) the (.+)\?", question):
                name = match[1]
                if name == toy.family:
                    assert answer == toy.color
                else:
                    part = toy.part(name) or toy.part(name + "s")
                    assert answer == part.color
            elif first == "how":
                number = ("no", "one", "two", "three", "four", "five", "six", "seven")
                assert answer == number[toy.variation.count]
            elif match := re.fullmatch(r"(?:is|are) there (?:an? )?(.+)\?", question):
                assert answer == ("yes" if toy.part(match[1]) else "no")
    assert asked >= {"what", "which", "how", "is", "are"}


def test_edits_do_what_they_say_and_nothing_else():
    kinds = set()
    for index in range(150):
        toy = BOX.object(index)
        before = {part.name: part.color for part in toy.parts}
        for edit in BOX.edits(index):
            after = {part.name: part.color for part in edit.object.parts}
            changed = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
            assert len(changed) == 1
            (name,) = changed
            verb = edit.instruction.split()[0]
            kinds.add(verb)
            if name not in after:
                assert verb in ("remove", "take")
                assert edit.instruction.endswith(name)
            elif name not in before:
                assert verb in ("add", "give")
                assert f"{after[name]} {name}" in edit.instruction
            else:
                assert edit.instruction.endswith(after[name])
                if name != toy.kind.main:
                    assert name.rstrip("s") in edit.instruction
            low, high = edit.object.hull.bounds()
            assert np.ptp([low.min(0), high.max(0)], axis=0).max() == pytest.approx(1, abs=1e-5)
    assert kinds >= {"make", "paint", "remove", "add"}


def test_impossible_edits_are_refused():
    toy = next(BOX.object(k) for k in range(400) if BOX.object(k).family == "chair")
    with pytest.raises(ValueError, match="no optional part 'legs'"):
        toy.without("legs")
    with pytest.raises(ValueError, match="no part 'handle'"):
        toy.recolored("handle", "red")
    with pytest.raises(ValueError, match="no absent optional part 'sail'"):
        toy.having("sail", "red")
