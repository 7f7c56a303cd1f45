"""Data as a user writes it: `name`, `name:ratio`, `name?key=value&key=value:ratio`."""

from __future__ import annotations

import inspect
import math
from typing import Any
from urllib.parse import unquote

from pydantic import TypeAdapter, ValidationError

from modalign.data.cached import Cached
from modalign.errors import ModalignError, RegistryError, did_you_mean
from modalign.registry import Registry, installed, missing_modules
from modalign.specs import Dataset, DatasetSpec

WRAPPING = ("cache", "missing")  # options of `Cached`, which any data set may be given


def parse_source(text: str, registry: Registry | None = None) -> tuple[Dataset, float]:
    """The data set that `text` names, and its mixing ratio, 1 if none is given.

    Options are those of the data set's builder, of the types that it declares; a key that is given
    twice makes a list. `%XX` stands for a character that would be read as syntax. Two more options
    go with any data set: `cache=FOLDER` takes targets from a token cache, and `missing=skip`
    leaves out what the cache lacks.

    Raises:
        RegistryError: nothing of that name is installed.
        ModalignError: the text, an option or a value is not what is expected, or a library is
            missing; the message says what would be.
    """
    described, ratio = split_ratio(text)
    name, asked, query = described.partition("?")
    spec: DatasetSpec = (registry or installed()).get("datasets", name)
    missing = missing_modules(spec.requires)
    if missing:
        raise ModalignError(
            f"dataset {name!r} needs {', '.join(missing)}, which cannot be imported here; "
            "for built-in ones: pip install modalign[data]"
        )
    if asked and not query:
        raise ModalignError(f"{text!r} ends where options were expected; write key=value after '?'")
    given = _pairs(text, query)
    wrapping = {key: given.pop(key)[-1] for key in WRAPPING if key in given}
    try:
        dataset = spec.build(**_typed(spec, given))
    except RegistryError:
        raise
    except ValueError as error:
        raise ModalignError(f"data {described!r}: {error}") from error
    if not wrapping:
        return dataset, ratio
    if "cache" not in wrapping:
        raise ModalignError(f"data {described!r}: missing=... says nothing without cache=FOLDER")
    found: Any = Cached(dataset, wrapping["cache"], missing=wrapping.get("missing", "encode"))  # type: ignore[arg-type]
    return found, ratio


def split_ratio(text: str) -> tuple[str, float]:
    """What stands before a final `:ratio`, and the ratio.

    Raises:
        ModalignError: the ratio is not a positive number.
    """
    described, colon, last = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        ratio = float(last)
    except ValueError:
        if "?" in described:  # a colon inside an option
            return text, 1.0
        raise ModalignError(
            f"mixing ratio {last!r} of data {described!r} is not a number; write {described}:0.5"
        ) from None
    if not (ratio > 0 and math.isfinite(ratio)):
        raise ModalignError(f"mixing ratio {last} of data {described!r} must be a positive number")
    return described, ratio


def _pairs(text: str, query: str) -> dict[str, list[str]]:
    given: dict[str, list[str]] = {}
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise ModalignError(f"option {part!r} of data {text!r} must be written key=value")
        given.setdefault(unquote(key), []).append(unquote(value))
    return given


def _typed(spec: DatasetSpec, given: dict[str, list[str]]) -> dict[str, Any]:
    try:  # without options nothing need be converted, nor annotations be known
        parameters = inspect.signature(spec.build, eval_str=bool(given)).parameters
    except NameError as error:
        raise ModalignError(
            f"dataset {spec.name!r} cannot take options: {error} where its builder's annotations "
            "are read; its plugin must import that name outside TYPE_CHECKING"
        ) from error
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    options: dict[str, Any] = {}
    for key, values in given.items():
        if key not in known:
            if not free:
                hint = did_you_mean(key, (*known, *WRAPPING))
                raise ModalignError(f"dataset {spec.name!r} has no option {key!r}.{hint}")
            options[key] = values[0] if len(values) == 1 else values
            continue
        annotation = known[key].annotation
        wanted = Any if annotation is inspect.Parameter.empty else annotation
        try:
            options[key] = TypeAdapter(wanted).validate_python(
                values[0] if len(values) == 1 else values
            )
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            shown = values[0] if len(values) == 1 else values
            raise ModalignError(
                f"option {key}={shown!r} of dataset {spec.name!r}: {said[:1].lower()}{said[1:]}"
            ) from error
    lacking = [
        name
        for name, parameter in known.items()
        if parameter.default is parameter.empty and name not in options
    ]
    if lacking:
        example = "&".join(f"{name}=..." for name in lacking)
        raise ModalignError(
            f"dataset {spec.name!r} needs {', '.join(lacking)}; write {spec.name}?{example}"
        )
    return options
