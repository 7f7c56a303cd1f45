"""Data sets as the command names them: `name`, `name:ratio`, `name?key=value&key=value:ratio`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from modalign.errors import ModalignError
from modalign.registry import Registry, missing_modules
from modalign.specs import Dataset


def sources(specs: Sequence[str], registry: Registry) -> list[tuple[Dataset, float]]:
    """The data sets that `specs` name, each with its mixing ratio.

    Raises:
        RegistryError: a name is unknown.
        ModalignError: a spec cannot be read, or a data set refuses its options.
    """
    return [_source(spec, registry) for spec in specs]


def parse(spec: str) -> tuple[str, dict[str, Any], float]:
    """Name, options and ratio of a spec. Values are JSON where they can be, else text.

    Raises:
        ModalignError: an option has no value, or the ratio is not above 0.
    """
    head, colon, tail = spec.rpartition(":")
    ratio = 1.0
    if colon and (number := _number(tail)) is not None:
        spec, ratio = head, number
    if not 0 < ratio < float("inf"):
        raise ModalignError(f"data {spec!r} has mixing ratio {ratio:g}; expected one above 0")
    name, _, query = spec.partition("?")
    options = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ModalignError(f"data {spec!r}: {pair!r} is no option; write key=value")
        options[key] = read_value(value)
    return name, options, ratio


def read_value(text: str) -> Any:
    """A JSON value, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _source(spec: str, registry: Registry) -> tuple[Dataset, float]:
    name, options, ratio = parse(spec)
    entry = registry.get("datasets", name)
    if missing := missing_modules(entry.requires):
        raise ModalignError(
            f"data set {name!r} needs {', '.join(missing)}: pip install modalign[train]"
        )
    try:
        return entry.build(**options), ratio
    except (TypeError, ValueError, OSError) as error:
        raise ModalignError(f"data set {name!r} refuses {options}: {error}") from error


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
