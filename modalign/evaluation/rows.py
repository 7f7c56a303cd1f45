"""Which recipes share a table, and what their numbers depend on."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from modalign.assembly import build
from modalign.errors import WeightsError
from modalign.pipeline import Pipeline
from modalign.recipe import Recipe
from modalign.registry import Registry, installed

VALUES_PER_TENSOR = 1024  # that a fingerprint reads: enough to notice other weights
DEPTH = 5  # objects inside objects that may hold what a result depends on


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
    """Eight hexadecimal digits that change with any tensor, number or text inside `parts`.

    Parts may be tensors, modules, recipes, or objects and collections that hold such. Of each
    tensor evenly spaced values are looked at: training changes all of them.
    """
    crc = 0
    for piece in _content(parts, DEPTH):
        if isinstance(piece, Tensor):
            values = piece.detach().reshape(-1)
            few = values[:: max(1, len(values) // VALUES_PER_TENSOR)].cpu().contiguous()
            crc = zlib.crc32(few.view(torch.uint8).numpy().tobytes(), crc)
        else:
            crc = zlib.crc32(repr(piece).encode(), crc)
    return f"{crc:08x}"


def _content(part: Any, depth: int) -> Iterator[Any]:
    """Tensors and plain values inside `part`, in an order that every process repeats."""
    if isinstance(part, (Tensor, str, int, float)):
        yield part
        return
    if depth == 0:
        return
    inner: Iterable[Any] = ()
    if isinstance(part, nn.Module):
        inner = part.state_dict().values()
    elif isinstance(part, Mapping):
        inner = part.values()
    elif isinstance(part, (tuple, list)):
        inner = part
    elif not isinstance(part, (type, ModuleType)):
        inner = getattr(part, "__dict__", {}).values()
    for piece in inner:
        yield from _content(piece, depth - 1)
