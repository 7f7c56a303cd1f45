"""The plugin hooks: one per kind, each returns a list. Implement those you have something for."""

from __future__ import annotations

import pluggy

from modalign.recipe import Recipe
from modalign.specs import (
    DatasetSpec,
    EncoderSpec,
    GeneratorSpec,
    ObjectiveSpec,
    SpaceMap,
    SuiteSpec,
    VLMSpec,
)

PROJECT = "modalign"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def modalign_encoders() -> list[EncoderSpec]:
    """Target encoders: what a trained head is asked to imitate."""
    return []


@hookspec
def modalign_vlms() -> list[VLMSpec]:
    """Adapters of vision-language models that soft tokens read from."""
    return []


@hookspec
def modalign_generators() -> list[GeneratorSpec]:
    """Frozen generators that consume a token stream."""
    return []


@hookspec
def modalign_objectives() -> list[ObjectiveSpec]:
    """What trains a head."""
    return []


@hookspec
def modalign_recipes() -> list[Recipe]:
    """Named combinations of parts."""
    return []


@hookspec
def modalign_datasets() -> list[DatasetSpec]:
    """Sources of training and evaluation pairs."""
    return []


@hookspec
def modalign_suites() -> list[SuiteSpec]:
    """Evaluation suites for `modalign bench`."""
    return []


@hookspec
def modalign_space_maps() -> list[SpaceMap]:
    """Lossless maps between token spaces."""
    return []
