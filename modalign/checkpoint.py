"""Trained tensors on disk: our checkpoints, and those that GAP3D's training leaves.

A checkpoint is one safetensors file: exactly the tensors of `Pipeline.trainable()`, with the
recipe, the stream's layout, a checksum per tensor and whatever the trainer adds in its header.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modalign.errors import OutputError, WeightsError
from modalign.models.dit import TokenStreamDiT
from modalign.models.released import from_released, listing, to_released
from modalign.recipe import Recipe
from modalign.tokens import TokenStreamSpec

__all__ = [
    "Checkpoint",
    "from_released",
    "load_checkpoint",
    "load_released",
    "load_trained",
    "match_tensors",
    "save_checkpoint",
    "to_released",
]

FORMAT = "modalign-1"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds; `tensors` lie on the CPU."""

    tensors: dict[str, Tensor]
    recipe: Recipe
    stream: TokenStreamSpec
    extra: dict[str, Any]


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
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write checkpoint {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint at `path`, verified.

    Raises:
        WeightsError: it is missing, truncated, corrupted, or not a checkpoint of modalign.
    """
    tensors, header = _read(Path(path))
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"{path} is not a checkpoint of modalign (its header says "
            f"{header.get('format', 'nothing')!r}, not {FORMAT!r}); convert a released checkpoint "
            "with modalign.checkpoint.load_released"
        )
    try:
        recipe = Recipe.model_validate_json(header["recipe"])
        stream = TokenStreamSpec.model_validate_json(header["stream"])
        extra, checksums = json.loads(header["extra"]), json.loads(header["checksums"])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"the header of {path} cannot be read: {error}") from error
    damaged = [name for name, tensor in tensors.items() if checksums.get(name) != _checksum(tensor)]
    if damaged:
        raise WeightsError(f"{path} is corrupted: {listing('wrong checksum of', damaged)}")
    return Checkpoint(tensors, recipe, stream, extra)


def load_trained(
    path: str | os.PathLike[str],
    recipe: Recipe,
    stream: TokenStreamSpec,
    expected: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The tensors of the checkpoint at `path`, if they were trained for this recipe's network.

    What does not change the network (sampler, training, name) may differ. `expected`, such as
    `Pipeline.trainable()`, may be on the meta device: names and shapes are compared.

    Raises:
        WeightsError: as `load_checkpoint`, or it is of another stream, head or shape.
    """
    checkpoint = load_checkpoint(path)
    for what, own, asked in (
        ("token stream", checkpoint.stream, stream),
        ("head", checkpoint.recipe.head, recipe.head),
        ("prediction", checkpoint.recipe.flow.prediction, recipe.flow.prediction),
        ("vlm", checkpoint.recipe.vlm, recipe.vlm),
        ("vlm_options", checkpoint.recipe.vlm_options, recipe.vlm_options),
        ("reading", checkpoint.recipe.reading, recipe.reading),
    ):
        if own != asked:
            raise WeightsError(
                f"{path} was trained for {what} {own!r}, but recipe {recipe.name!r} has {asked!r}"
            )
    if expected is not None:
        match_tensors(checkpoint.tensors, expected, str(path))
    return checkpoint.tensors


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


def load_released(path: str | os.PathLike[str], head: TokenStreamDiT) -> dict[str, Tensor]:
    """Trained tensors ("head....", "soft_tokens") of a checkpoint as GAP3D's training leaves it.

    `path` is a safetensors file, or a folder with one or with shards and their index. Only the
    trained tensors are read. `head`, possibly on the meta device, says which network is meant.

    Raises:
        WeightsError: a file is missing or damaged, or holds another network.
    """
    path = Path(path)
    shards = [path]
    if path.is_dir():
        index = path / "model.safetensors.index.json"
        names = {"model.safetensors"}
        if index.exists():
            names = set(json.loads(index.read_text())["weight_map"].values())
        shards = [path / name for name in sorted(names)]
    state: dict[str, Tensor] = {}
    for shard in shards:
        state |= _read(shard, prefixes=("model.dit.", "model.latent_queries"))[0]
    soft_tokens = state.pop("model.latent_queries", None)
    converted = from_released(state, head, origin=str(path))
    match_tensors(converted, head.state_dict(), str(path))
    trained = {f"head.{name}": tensor for name, tensor in converted.items()}
    if soft_tokens is None:
        raise WeightsError(f"{path} has no soft tokens: missing model.latent_queries")
    return trained | {"soft_tokens": soft_tokens}


def _read(
    path: Path, prefixes: tuple[str, ...] = ("",)
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors whose names start with one of `prefixes`, and the header's metadata."""
    if not path.is_file():
        raise WeightsError(f"no checkpoint at {path}; give a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefixes)]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is truncated, corrupted or no safetensors: {error}") from error


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)
