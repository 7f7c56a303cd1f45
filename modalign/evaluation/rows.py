"""Which recipes share a table, and what their numbers depend on."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modalign.assembly import build
from modalign.errors import WeightsError
from modalign.pipeline import Pipeline
from modalign.recipe import Recipe
from modalign.registry import Registry, installed

VALUES_PER_TENSOR = 1024
PLAIN = (str, int, float, tuple, Recipe)  # their `repr` says what they are, in every process
DEPTH = 4  # objects inside objects that may hold the tensors of a part


def relatives(recipe: Recipe, registry: Registry | None = None) -> list[Recipe]:
    """`recipe` and the registered variants of it that can be compared with it, in that order.

    A variant has the same encoder, and the recipe's name with a hyphen and more behind it:
    `gap3d-mini-stage1` is one of `gap3d-mini`. Sorted by name.
    """
    known = (registry or installed()).catalogue.recipes
    variants = [
        other
        for name, other in sorted(known.items())
        if name.startswith(f"{recipe.name}-") and other.encoder == recipe.encoder
    ]
    return [recipe, *variants]


@dataclass(frozen=True)
class Assembled:
    """Pipelines by name, the asked recipe's first, and why the others are missing."""

    pipelines: Mapping[str, Pipeline]
    missing: Mapping[str, str]


def assembled(
    recipe: Recipe, registry: Registry | None = None, *, generator: bool = True
) -> Assembled:
    """The recipe and its relatives as trained pipelines; variants without weights are left out.

    A suite that looks at streams only passes `generator=False`: none is then built or needed.

    Raises:
        WeightsError: the recipe itself has no usable weights.
        BuildError: its parts do not fit.
    """
    first, *others = (
        each if generator else each.derive(generator=None) for each in relatives(recipe, registry)
    )
    pipelines = {first.name: build(first, registry=registry)}
    missing: dict[str, str] = {}
    for other in others:
        try:
            pipelines[other.name] = build(other, registry=registry)
        except WeightsError as error:
            missing[other.name] = str(error)
    return Assembled(pipelines, missing)


def fingerprint(*parts: Any) -> str:
    """Eight hexadecimal digits that change with any tensor in `parts`, and with plain values.

    A part may be a tensor, a module, an object that holds such, a recipe, a text or a number. Of
    each tensor evenly spaced values are looked at: training changes all of them.
    """
    crc = 0
    for part in parts:
        tensors = list(_tensors(part, DEPTH))
        for tensor in tensors:
            values = tensor.detach().reshape(-1)
            few = values[:: max(1, len(values) // VALUES_PER_TENSOR)].cpu().contiguous()
            crc = zlib.crc32(few.view(torch.uint8).numpy().tobytes(), crc)
        if not tensors:
            text = repr(part) if isinstance(part, PLAIN) else type(part).__qualname__
            crc = zlib.crc32(text.encode(), crc)
    return f"{crc:08x}"


def _tensors(part: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, nn.Module):
        yield from part.state_dict().values()
    elif depth and not isinstance(part, type):
        inner = part if isinstance(part, Mapping) else getattr(part, "__dict__", {})
        for value in inner.values():
            yield from _tensors(value, depth - 1)
