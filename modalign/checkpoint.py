"""Trained tensors on disk.

A checkpoint is one safetensors file: the tensors of `Pipeline.trainable()`, with the recipe, the
stream's layout, a checksum per tensor and whatever the trainer adds in its header. Tensors named
"frozen...." belong to a frozen part and are not trained.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modalign.errors import OutputError, WeightsError
from modalign.models.released import listing
from modalign.recipe import Recipe
from modalign.tokens import TokenStreamSpec

FORMAT = "modalign-1"
FROZEN = "frozen."
WEIGHTS_NAME = "model.safetensors"  # in a folder or repository


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: trained `tensors`, and those of frozen parts by their full name."""

    tensors: dict[str, Tensor]
    recipe: Recipe
    stream: TokenStreamSpec
    extra: dict[str, Any]
    frozen: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    recipe: Recipe,
    stream: TokenStreamSpec,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `tensors` with all that describes them; the file appears whole or not at all.

    `extra` is any JSON content, such as the number of steps.

    Raises:
        OutputError: the file cannot be written.
    """
    path = Path(path)
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {
        "format": FORMAT,
        "recipe": recipe.model_dump_json(),
        "stream": stream.model_dump_json(),
        "extra": json.dumps(dict(extra or {})),
        "checksums": json.dumps({name: _checksum(tensor) for name, tensor in own.items()}),
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(own, partial, metadata=header)
        with partial.open("r+b") as file:
            _sort_header(file)
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write checkpoint {path}: {error}") from error
    finally:
        with suppress(OSError):  # also where the folder is none: the error above says so
            partial.unlink()


def _sort_header(file: BinaryIO) -> None:
    """Sort the metadata of a safetensors file, which its writer shuffles: equal content then gives
    equal files."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) <= size:  # spaces fill the rest, as they did before
        file.seek(8)
        file.write(text.ljust(size))


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a file of modalign; False for whatever else is there, damaged or not."""
    try:
        with _opened(Path(path)) as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except WeightsError:
        return False


def recipe_of(path: str | os.PathLike[str]) -> Recipe:
    """The recipe that a checkpoint was trained for; no tensor is read.

    Raises:
        WeightsError: it is missing, truncated, or not a checkpoint of modalign.
    """
    return _described(Path(path))[0]


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    only: Callable[[str], bool] | None = None,
) -> Checkpoint:
    """The checkpoint at `path`, verified; floating tensors in `dtype`, or as stored if None.

    Tensors go to `device` one by one, so memory holds them once and one more, whatever is stored.
    `only` says by name which are read, and thereby verified; all if None.

    Raises:
        WeightsError: it is missing, truncated, corrupted, or not a checkpoint of modalign.
    """
    path = Path(path)
    recipe, stream, extra, checksums = _described(path)
    tensors: dict[str, Tensor] = {}
    frozen: dict[str, Tensor] = {}
    damaged = []
    for name in filter(only, _names(path)):
        with _opened(path) as file:  # closed again, or all that was read would stay mapped
            tensor = file.get_tensor(name)
            if checksums.get(name) != _checksum(tensor):
                damaged.append(name)
            wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            place = frozen if name.startswith(FROZEN) else tensors
            place[name] = tensor.to(device, wanted, copy=True)
            del tensor
    if damaged:
        raise WeightsError(f"{path} is corrupted: {listing('wrong checksum of', damaged)}")
    return Checkpoint(tensors, recipe, stream, extra, frozen)


def load_trained(
    path: str | os.PathLike[str],
    recipe: Recipe,
    stream: TokenStreamSpec,
    expected: Mapping[str, Tensor] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    only: Callable[[str], bool] | None = None,
) -> Checkpoint:
    """The checkpoint at `path`, if it was trained for this recipe's network.

    What does not change the network (sampler, training, name) may differ. `expected`, such as
    `Pipeline.trainable()`, may be on the meta device: names and shapes are compared.

    Raises:
        WeightsError: as `load_checkpoint`, or it is of another stream, head or shape.
    """
    trained_for, its_stream, _, _ = _described(Path(path))  # before anything large is read
    for what, own, asked in (
        ("token stream", its_stream, stream),
        ("head", trained_for.head, recipe.head),
        ("prediction", trained_for.flow.prediction, recipe.flow.prediction),
        ("vlm", trained_for.vlm, recipe.vlm),
        ("vlm_options", trained_for.vlm_options, recipe.vlm_options),
        ("reading", trained_for.reading, recipe.reading),
    ):
        if own != asked:
            raise WeightsError(
                f"{path} was trained for {what} {own!r}, but recipe {recipe.name!r} has {asked!r}"
            )
    checkpoint = load_checkpoint(path, device=device, dtype=dtype, only=only)
    if expected is not None:
        asked_for = {name: t for name, t in expected.items() if only is None or only(name)}
        match_tensors(checkpoint.tensors, asked_for, str(path))
    return checkpoint


def match_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str
) -> None:
    """Accept `tensors` if they have exactly the names and shapes of `expected`.

    Raises:
        WeightsError: names `origin` and what is missing, unexpected, or of another shape.
    """
    misfits = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    faults = (
        listing("missing", sorted(set(expected) - set(tensors))),
        listing("unexpected", sorted(set(tensors) - set(expected))),
        listing("wrong shape:", misfits),
    )
    if any(faults):
        raise WeightsError(f"{origin} does not fit this network: {'; '.join(filter(None, faults))}")


def _described(path: Path) -> tuple[Recipe, TokenStreamSpec, dict[str, Any], dict[str, int]]:
    """What the header of a checkpoint says: recipe, layout, extra content, checksums."""
    with _opened(path) as file:
        header = dict(file.metadata() or {})
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"{path} is not a checkpoint of modalign (its header says "
            f"{header.get('format', 'nothing')!r}, not {FORMAT!r}); turn a released checkpoint "
            "into one with `modalign convert`"
        )
    try:
        return (
            Recipe.model_validate_json(header["recipe"]),
            TokenStreamSpec.model_validate_json(header["stream"]),
            json.loads(header["extra"]),
            json.loads(header["checksums"]),
        )
    except (KeyError, ValueError) as error:
        raise WeightsError(f"the header of {path} cannot be read: {error}") from error


def _names(path: Path) -> list[str]:
    with _opened(path) as file:
        return list(file.keys())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise WeightsError(f"no checkpoint at {path}; give a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is truncated, corrupted or no safetensors: {error}") from error


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)
