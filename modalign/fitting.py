"""Whether the parts of a recipe fit each other, on plain data: nothing is loaded or built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modalign.errors import BuildError, RegistryError, did_you_mean
from modalign.recipe import Recipe
from modalign.registry import Registry, missing_modules
from modalign.spaces import Route, refusal, route
from modalign.specs import EncoderSpec, GeneratorSpec, ObjectiveSpec, PluginSpec, VLMSpec


@dataclass(frozen=True)
class Choice:
    """The catalogue entries that a recipe names, found and compared.

    `route` leads from the encoder's space to the generator's; None without a generator.
    """

    vlm: VLMSpec
    encoder: EncoderSpec
    objective: ObjectiveSpec
    generator: GeneratorSpec | None
    route: Route | None


def fit(recipe: Recipe, registry: Registry) -> Choice:
    """The parts of `recipe`, compared on plain data before anything is loaded.

    Raises:
        BuildError: lists every unknown name, missing library and misfit at once.
    """
    misfits: list[str] = []
    found: dict[str, Any] = {}
    for kind, name in recipe.parts().items():
        try:
            found[kind] = registry.get(kind, name)
        except RegistryError as error:
            misfits.append(str(error))
    for entry in found.values():
        misfits += lacking(entry)
    vlm, encoder = found.get("vlms"), found.get("encoders")
    objective, generator = found.get("objectives"), found.get("generators")
    way: Route | None = None
    if vlm is not None and vlm.max_positions is not None:
        misfits += too_many_soft_tokens(recipe, vlm.max_positions)
    if objective is not None and objective.head != "dit":
        misfits.append(
            f"objective {objective.name!r} trains a head of kind {objective.head!r}; "
            "recipes build a 'dit'"
        )
    if encoder is not None and generator is not None:
        maps = registry.catalogue.space_maps.values()
        way = route(encoder.stream, generator.accepts, maps)
        if way is None:
            misfits.append(misfit(encoder, generator))
    if misfits:
        raise BuildError("; ".join(misfits))
    assert vlm is not None
    assert encoder is not None
    assert objective is not None
    return Choice(vlm, encoder, objective, generator, way)


def misfit(encoder: EncoderSpec, generator: GeneratorSpec) -> str:
    """Why a generator cannot read what an encoder makes, in one sentence."""
    return (
        f"encoder {encoder.name!r} makes {encoder.stream.space!r}, but generator "
        f"{generator.name!r} reads {generator.accepts.space!r}: "
        f"{refusal(encoder.stream, generator.accepts)}; choose a generator of the "
        "encoder's space, or the encoder it was trained on"
    )


def lacking(entry: PluginSpec) -> list[str]:
    """What to install for `entry`, in one sentence; empty if nothing is missing."""
    missing = missing_modules(entry.requires)
    if not missing:
        return []
    return [f"{entry.name!r} needs {', '.join(missing)}: pip install {' '.join(missing)}"]


def produced(recipe: str | Recipe, registry: Registry, format: str | None = None) -> str:
    """What the recipe's generator makes, such as "mesh" or "picture"; no model is touched.

    That is `format`, if one is asked for.

    Raises:
        RegistryError: the recipe's name is unknown.
        BuildError: it has no generator, one that does not make the format, or its parts do not fit.
    """
    named = registry.get("recipes", recipe) if isinstance(recipe, str) else recipe
    generator = fit(named, registry).generator
    if generator is None:
        raise BuildError(f"recipe {named.name!r} has no generator: it makes tokens and no asset")
    known = generator.formats or (generator.produces,)
    if format is not None and format not in known:
        hint = did_you_mean(format, known)
        raise BuildError(f"generator {generator.name!r} cannot make {format!r}.{hint}")
    return format or generator.produces


def too_many_soft_tokens(recipe: Recipe, max_positions: int) -> list[str]:
    """What is wrong with the recipe's number of soft tokens, if anything."""
    if recipe.num_soft_tokens < max_positions:
        return []
    return [
        f"recipe {recipe.name!r} appends {recipe.num_soft_tokens} soft tokens, but "
        f"{recipe.vlm!r} reads at most {max_positions} positions; lower num_soft_tokens"
    ]
