"""Recipes as values."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from modalign import DiTConfig, ReadingConfig, Recipe, Ref, SamplerConfig

RECIPE = Recipe(
    name="test",
    vlm="a",
    encoder="b",
    generator=None,
    objective=Ref(name="flow-matching"),
    head=DiTConfig(hidden_size=64, depth=2, num_heads=4),
)


def test_derive_changes_only_what_it_names() -> None:
    changed = RECIPE.derive(name="fast", sampler={"steps": 5})
    assert changed.sampler == SamplerConfig(steps=5)
    assert changed.head == RECIPE.head
    assert RECIPE.sampler.steps == 50


def test_derive_validates() -> None:
    with pytest.raises(ValidationError, match="stps"):
        RECIPE.derive(sampler={"stps": 5})
    with pytest.raises(ValidationError, match=r"hidden_size \(64\) must be divisible by num_heads"):
        RECIPE.derive(head={"num_heads": 7})
    with pytest.raises(ValidationError, match="nonsense"):
        RECIPE.derive(nonsense=1)


def test_a_recipe_survives_json() -> None:
    assert Recipe.model_validate_json(RECIPE.model_dump_json()) == RECIPE
    reading = {"layers": (3, 0), "pooling": "learned", "prompt_states": True}
    other = RECIPE.derive(reading=reading, vlm_options={"positions": "native"})
    assert Recipe.model_validate_json(other.model_dump_json()) == other


def test_a_recipe_written_before_reading_was_a_choice_means_the_last_layer() -> None:
    content = RECIPE.model_dump(mode="json", exclude={"reading", "vlm_options"})
    assert Recipe.model_validate(content) == RECIPE
    assert RECIPE.reading == ReadingConfig(layers="last", pooling="mean", prompt_states=False)


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"layers": ()}, "one or several different"),
        ({"layers": (3, 3)}, "one or several different"),
        ({"layers": (-1,)}, "greater than or equal to 0"),
        ({"pooling": "learned"}, "at least two layers"),
        ({"pooling": "learned", "layers": (3,)}, "at least two layers"),
    ],
)
def test_a_reading_that_says_nothing_is_refused(reading: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RECIPE.derive(reading=reading)


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RECIPE.name = "other"  # type: ignore[misc]
