"""Which recipes share a table, and what their numbers depend on."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from modalign.assembly import build
from modalign.errors import ModalignError, WeightsError
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
    recipe: Recipe,
    registry: Registry | None = None,
    *,
    generator: bool = True,
    weights: Mapping[str, Path] | None = None,
) -> Assembled:
    """The recipe and its relatives as trained pipelines; variants without weights are left out.

    A suite that looks at streams only passes `generator=False`: none is then built or needed.
    `weights` are checkpoints of some of them, by name, instead of those that ship.

    Raises:
        ModalignError: `weights` names none of them.
        WeightsError: the recipe itself has no usable weights, or a given checkpoint is none.
        BuildError: its parts do not fit.
    """
    first, *others = (
        each if generator else each.derive(generator=None) for each in relatives(recipe, registry)
    )
    given = dict(weights or {})
    names = [first.name, *(other.name for other in others)]
    for name in given.keys() - set(names):
        raise ModalignError(f"{name!r} is not measured here; checkpoints go to {', '.join(names)}")
    pipelines: dict[str, Pipeline] = {}
    missing: dict[str, str] = {}
    for each in (first, *others):
        try:
            pipelines[each.name] = build(
                each, weights=given.get(each.name, "pretrained"), registry=registry
            )
        except WeightsError as error:
            if each is first or each.name in given:
                raise
            missing[each.name] = str(error)
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
