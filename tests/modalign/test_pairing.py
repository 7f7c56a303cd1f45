"""An encoder's own tokens in a generator, without a language model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modalign import BuildError, Pipeline, PromptError, TokenStreamSpec, build, pair
from modalign.testing import pictures
from tests.modalign import stubs


def cropping(**generator: Any) -> Any:
    return stubs.registry(generator={"crop": lambda image: image.crop((0, 0, 40, 40)), **generator})


def same(left: Any, right: Any) -> bool:
    return bool(np.array_equal(left.vertices, right.vertices))


def test_pictures_are_cropped_encoded_and_generated_from() -> None:
    """The four calls by hand, on the same parts."""
    made = pair("stub-encoder", "stub-generator", registry=cropping()).generate(pictures(), seed=3)
    encoder, generator = stubs.Encoder(), stubs.Generator()
    stream = encoder.encode(encoder.prepare([x.crop((0, 0, 40, 40)) for x in pictures()]))
    expected = generator.generate(stream, seed=3)
    assert len(made) == 3
    assert all(same(*both) for both in zip(made, expected, strict=True))


def test_a_generator_without_a_crop_reads_pictures_as_they_are() -> None:
    made = pair("stub-encoder", "stub-generator", registry=stubs.registry()).generate(pictures()[0])
    encoder = stubs.Encoder()
    stream = encoder.encode(encoder.prepare(pictures()[:1]))
    (expected,) = stubs.Generator().generate(stream, seed=0)
    assert same(made[0], expected)


def test_a_pipeline_generates_from_pictures_without_its_head(tmp_path: Any) -> None:
    registry = cropping()
    pipeline: Pipeline = build(
        "stub", weights=stubs.checkpoint(tmp_path / "s.safetensors", registry), registry=registry
    )
    made = pipeline.generate_from(pictures()[1], seed=1)
    expected = pair("stub-encoder", "stub-generator", registry=registry).generate(
        pictures()[1], seed=1
    )
    assert same(made[0], expected[0])


def test_texts_are_not_taken_apart() -> None:
    """A string is one sample, not one for each letter."""

    class Letters(stubs.Encoder):
        def prepare(self, images: list[Any]) -> torch.Tensor:
            return torch.tensor([[float(len(text))] for text in images])

    registry = stubs.registry(encoder={"build": stubs.giving(Letters()), "modality": "text"})
    assert len(pair("stub-encoder", "stub-generator", registry=registry).generate("a mug")) == 1


def test_parts_of_different_spaces_are_refused_before_they_are_built() -> None:
    other = TokenStreamSpec(space="other/layernorm@28", groups=stubs.STREAM.groups)
    registry = stubs.registry(generator={"accepts": other, "build": None})
    with pytest.raises(BuildError, match=r"'stub-generator' reads 'other/layernorm@28'"):
        pair("stub-encoder", "stub-generator", registry=registry)


def test_a_library_that_is_missing_is_named() -> None:
    registry = stubs.registry(encoder={"requires": ("no_such_library",)})
    with pytest.raises(BuildError, match="pip install no_such_library"):
        pair("stub-encoder", "stub-generator", registry=registry)


def test_nothing_is_refused() -> None:
    with pytest.raises(PromptError, match="nothing was given"):
        pair("stub-encoder", "stub-generator", registry=stubs.registry()).generate([])


def test_a_recipe_without_a_generator_is_refused(tmp_path: Any) -> None:
    registry = stubs.registry()
    weights = stubs.checkpoint(tmp_path / "s.safetensors", registry)
    recipe = stubs.RECIPE.derive(generator=None)
    pipeline = build(recipe, weights=weights, registry=registry)
    with pytest.raises(BuildError, match="has no generator"):
        pipeline.generate_from(Image.new("RGB", (9, 9)))
