"""Folders as GAP3D's and BLIP3-o's training leave them, to one checkpoint of modalign and back.

Such a folder holds the trained network and the soft tokens between billions of frozen parameters.
Every tensor in it is accounted for in a `Manifest`: kept, known to be frozen, or refused by name.

Source: facts of the released GAP3D network, section 6.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modalign.checkpoint import FROZEN, Checkpoint, match_tensors
from modalign.errors import OutputError, WeightsError
from modalign.models.dit import TokenStreamDiT
from modalign.models.released import from_released, listing, to_released
from modalign.recipe import DiTConfig
from modalign.tokens import TokenStreamSpec

NETWORK = "model.dit.model."
SOFT_TOKENS = "model.latent_queries"
# The word table, as written before and after transformers 4.52.
WORDS = ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight")
TOKEN_ROWS = f"{FROZEN}token_rows"  # rows of the word table that training added, [IMG] first
FIRST_ADDED = 151665  # id of [IMG]; [/IMG] and <image> follow, and end the table
# What else lies in such a folder, untrained: by prefix, both before and after transformers 5.
FROZEN_PARTS = {
    "model.embed_tokens.": "word table",
    "model.language_model.embed_tokens.": "word table",
    "model.layers.": "language model",
    "model.norm.": "language model",
    "model.language_model.": "language model",
    "lm_head.": "word output",
    "visual.": "vision tower",
    "model.visual.": "vision tower",
    "model.gen_vision_tower.": "target encoder",
}
_NAMES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Manifest:
    """What became of every tensor of a folder: names kept, and counts of frozen parts left out."""

    kept: tuple[str, ...]
    left_out: Mapping[str, int]

    def __str__(self) -> str:
        """One line per kind."""
        lines = [f"kept: {len(self.kept)} tensors"]
        lines += [f"left out: {count} of the {part}" for part, count in self.left_out.items()]
        return "\n".join(lines)


def empty_head(stream: TokenStreamSpec, config: DiTConfig, condition_dim: int) -> TokenStreamDiT:
    """The network's names and shapes alone, on the meta device."""
    with torch.device("meta"):
        return TokenStreamDiT(stream, config, condition_dim)


def read_released(
    path: str | os.PathLike[str], head: TokenStreamDiT, *, first_added: int = FIRST_ADDED
) -> tuple[dict[str, Tensor], Manifest]:
    """Trained tensors ("head....", "soft_tokens") of a released-layout folder or file, accounted.

    `path` holds safetensors or a pickle of tensors, whole or in shards with an index. Rows of the
    word table from `first_added` on come along as "frozen.token_rows" (R, C), where there are any.
    `head`, possibly on the meta device, says which network is meant.

    Raises:
        WeightsError: a file is missing, damaged or holds more than tensors; tensors are missing, of
            another shape, or belong to nothing known. The message lists their names.
    """
    path = Path(path)
    network: dict[str, Tensor] = {}
    kept: list[str] = []
    left_out: Counter[str] = Counter()
    extra: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for name, tensor in _tensors(path):
        part = next((part for prefix, part in FROZEN_PARTS.items() if name.startswith(prefix)), "")
        if name.startswith(NETWORK):
            network[name] = tensor
        elif name == SOFT_TOKENS:
            extra["soft_tokens"] = tensor
        elif not part:
            unexpected.append(name)
            continue
        else:
            left_out[part] += 1
            if name in WORDS and len(tensor) > first_added:
                extra[TOKEN_ROWS] = tensor[first_added:].clone()
            continue
        kept.append(name)
    faults = [listing("unexpected", sorted(unexpected))]
    if "soft_tokens" not in extra:
        faults.append(f"missing {SOFT_TOKENS}")
    if any(faults):
        raise WeightsError(
            f"{path} is not what GAP3D's or BLIP3-o's training leaves: "
            f"{'; '.join(filter(None, faults))}"
        )
    converted = from_released(network, head, origin=str(path))
    match_tensors(converted, head.state_dict(), str(path))
    trained = {f"head.{name}": tensor for name, tensor in converted.items()} | extra
    return trained, Manifest(tuple(sorted(kept)), dict(sorted(left_out.items())))


def write_released(
    checkpoint: Checkpoint,
    head: TokenStreamDiT,
    folder: str | os.PathLike[str],
    *,
    frozen: str | os.PathLike[str] | None = None,
    first_added: int = FIRST_ADDED,
) -> Manifest:
    """Write `checkpoint` as a released-layout folder: the inverse of `read_released`, bit for bit.

    `frozen` is a folder (Qwen2.5-VL's own, or a released one) whose untrained tensors are copied,
    so that the result is whole; its word table is cut at `first_added` and our rows follow. Without
    it only trained tensors are written. The folder must be new or empty, and appears whole.

    Raises:
        OutputError: the folder is not empty, or cannot be written.
        WeightsError: `frozen` is damaged or holds no word table, or the checkpoint holds tensors,
            such as those of learned layer pooling, that were never released.
    """
    from huggingface_hub import save_torch_state_dict

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"cannot write into {folder}: it exists and is not an empty folder")
    own = {name.removeprefix("head."): tensor for name, tensor in checkpoint.tensors.items()}
    foreign = sorted(set(own) - set(head.state_dict()) - {"soft_tokens"})
    if foreign:
        raise WeightsError(f"the released layout {listing('has no place for', foreign)}")
    state = to_released(own, head, prefix=NETWORK)
    state[SOFT_TOKENS] = checkpoint.tensors["soft_tokens"]
    kept = tuple(sorted(state))
    copied: Counter[str] = Counter()
    if frozen is not None:
        for name, tensor in _tensors(Path(frozen)):
            part = next(
                (part for start, part in FROZEN_PARTS.items() if name.startswith(start)), ""
            )
            if not part:
                continue
            copied[part] += 1
            if name in WORDS and TOKEN_ROWS in checkpoint.frozen:
                tensor = torch.cat([tensor[:first_added], checkpoint.frozen[TOKEN_ROWS].to(tensor)])
            state[name] = tensor
        if not any(name in state for name in WORDS):
            raise WeightsError(f"{frozen} holds no {WORDS[0]}; is it a folder of Qwen2.5-VL?")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".modalign-"))
        try:
            contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
            save_torch_state_dict(contiguous, aside)
            aside.chmod(0o755)
            aside.replace(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {folder}: {error}") from error
    return Manifest(kept, dict(sorted(copied.items())))


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a file or folder with its name, without the "module." of parallel training.

    Files are read one at a time, mapped rather than copied.
    """
    for file, expected in _files(path):
        found = dict(_safe(file) if file.suffix == ".safetensors" else _pickled(file))
        if expected is not None and set(found) != expected:
            faults = (
                listing("missing", sorted(expected - set(found))),
                listing("unexpected", sorted(set(found) - expected)),
            )
            raise WeightsError(
                f"{file} is not what its index says: {'; '.join(filter(None, faults))}"
            )
        for name, tensor in found.items():
            yield name.removeprefix("module."), tensor


def _files(path: Path) -> list[tuple[Path, set[str] | None]]:
    """The files of weights, each with the names that an index promises, or None without one."""
    if path.is_file():
        return [(path, None)]
    if not path.is_dir():
        raise WeightsError(f"no checkpoint at {path}; give a folder, a .safetensors or a .bin file")
    for name in _NAMES:
        index = path / f"{name}.index.json"
        if index.is_file():
            try:
                placed: dict[str, str] = json.loads(index.read_text())["weight_map"]
                files = sorted(set(placed.values()))
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise WeightsError(f"{index} is damaged: {error!r}") from error
            absent = [file for file in files if not (path / file).is_file()]
            if absent:
                raise WeightsError(
                    f"{path} lacks {listing('', absent).strip()}, which {index.name} names"
                )
            return [
                (path / file, {key for key, where in placed.items() if where == file})
                for file in files
            ]
        if (path / name).is_file():
            return [(path / name, None)]
    raise WeightsError(f"{path} holds none of {', '.join(_NAMES)} and no index of them")


def _safe(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{file} is truncated, corrupted or no safetensors: {error}") from error


def _pickled(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a pickle, of which nothing but tensors is ever read."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    # Damaged pickles raise what they like, TypeError and KeyError among it.
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{file} is damaged, or holds more than tensors: {first}") from error
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise WeightsError(f"{file} holds no table of tensors")
    yield from content.items()
