"""Targets encoded once and kept on disk, so that training needs no encoder.

A cache is a folder: `index.json` says what it holds, and each shard of consecutive samples is a
safetensors file with a small JSON beside it, written last, that has its checksum. Shards do not
know of each other, so many processes fill one cache.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence, Sized
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from modalign.assets import write_whole
from modalign.data.stored_tokens import (
    SCALE,
    CacheHeader,
    checksum,
    digest,
    identity,
    restored,
    stored,
)
from modalign.errors import ModalignError
from modalign.fingerprint import same_weights
from modalign.specs import Dataset
from modalign.tokens import TokenStream, TokenStreamSpec

logger = logging.getLogger(__name__)

OPEN_SHARDS = 64
SHARD_BYTES = 1 << 27  # what a process loses when it is killed
ADVICE = {  # where a value has no place
    "float16": "use int8, or look at the picture",
    "int8": "look at the picture, and at the encoder's weights",
}
PRESENT, IDENTITY, CHECKSUM = "present", "identity", "checksum"


class TokenCache:
    """A cache on disk; `open` one to read, `create` one, or continue it, to write."""

    def __init__(self, path: Path, header: CacheHeader) -> None:
        self.path, self.header = path, header
        self.damaged: dict[int, str] = {}  # shards that could not be read, and why
        self._opened = _opener(path)

    @classmethod
    def open(cls, path: str | Path) -> TokenCache:
        """The cache in the folder `path`.

        Raises:
            ModalignError: there is none, or its index is damaged.
        """
        index = Path(path) / "index.json"
        if not index.is_file():
            raise ModalignError(f"no token cache at {path}; make one with `modalign encode`")
        try:
            return cls(Path(path), CacheHeader.model_validate_json(index.read_bytes()))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise ModalignError(
                f"{index} is damaged: {where}: {first['msg']}; encode into another folder"
            ) from error

    @classmethod
    def create(cls, path: str | Path, header: CacheHeader) -> TokenCache:
        """The cache of `header` in the folder `path`, new or begun earlier.

        Raises:
            ModalignError: the folder holds something else, or cannot be written.
        """
        folder = Path(path)
        if (folder / "index.json").exists():
            cache = cls.open(folder)
            cache._require_header(header)
            return cache
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "index.json", header.model_dump_json(indent=1).encode())
        except OSError as error:
            raise ModalignError(f"cannot write {folder}: {error.strerror or error}") from error
        return cls(folder, header)

    def require(
        self, stream: TokenStreamSpec, fingerprint: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        """Accept a cache of this stream, made by an encoder of this fingerprint if that is known.

        Raises:
            ModalignError: it holds other tokens.
        """
        if self.header.stream != stream:
            raise ModalignError(
                f"token cache {self.path} holds {self.header.stream.space!r}, but what is asked "
                f"for is {stream.space!r}; encode the data again"
            )
        if fingerprint is not None and not same_weights(self.header.fingerprint, fingerprint):
            raise ModalignError(
                f"token cache {self.path} was made by other weights of "
                f"{self.header.encoder!r}; encode the data again, into another folder"
            )

    def require_samples(self, dataset: Dataset) -> None:
        """Accept a data set of the cached length.

        Raises:
            ModalignError: it has more or fewer samples.
        """
        length = len(dataset) if isinstance(dataset, Sized) else None
        if length != self.header.length:
            raise ModalignError(
                f"token cache {self.path} is of {self.header.data!r} with "
                f"{self.header.length or 'endless'} samples, but the data has "
                f"{length or 'endless'}; encode the data again"
            )

    def require_identity(self, index: int, identifier: str) -> None:
        """Accept `identifier` as the name of cached sample `index`.

        Raises:
            ModalignError: sample `index` had another name when it was encoded.
        """
        shard, row = divmod(index, self.header.shard_samples)
        if int(self._opened(shard).get_slice(IDENTITY)[row]) != identity(identifier):
            raise ModalignError(
                f"token cache {self.path} knows sample {index} by another name than "
                f"{identifier!r}: the data has changed since; encode it again"
            )

    def read(self, index: int) -> TokenStream | None:
        """The stream (1, K, D) of sample `index` in float32; None if it is not here.

        A sample whose checksum fails is not here either; its shard is named in a warning, and in
        `damaged`.
        """
        shard, row = divmod(index, self.header.shard_samples)
        if index >= self.header.samples or not self.has(shard):
            return None
        try:
            opened = self._opened(shard)
            if not opened.get_slice(PRESENT)[row]:
                return None
            kept = {name: opened.get_slice(name)[row] for name in self._tensor_names()}
            expected = int(opened.get_slice(CHECKSUM)[row])
        except (SafetensorError, OSError) as error:
            self._report(shard, str(error))
            return None
        if checksum(kept.values()) != expected:
            self._report(shard, f"the checksum of sample {index} does not match")
            return None
        return {
            name: torch.from_numpy(restored(kept, name))[None] for name in self.header.stream.names
        }

    def has(self, shard: int) -> bool:
        """Whether `shard` was written in full."""
        return self._file(shard).with_suffix(".json").exists()

    def skipped(self) -> dict[int, str]:
        """Samples that could not be encoded, by index, with name and reason."""
        found = {}
        for shard in filter(self.has, range(self.header.num_shards)):
            said = json.loads(self._file(shard).with_suffix(".json").read_bytes())
            found.update({int(index): reason for index, reason in said["skipped"].items()})
        return found

    def verify(self, shards: Sequence[int] | None = None) -> dict[int, str]:
        """Those of the written `shards`, all by default, whose file is damaged, with the reason."""
        found = {}
        for shard in range(self.header.num_shards) if shards is None else shards:
            if not self.has(shard):
                continue
            try:
                said = json.loads(self._file(shard).with_suffix(".json").read_bytes())
                if digest(self._file(shard)) != said["sha256"]:
                    found[shard] = "its checksum does not match"
            except (OSError, ValueError, KeyError) as error:
                found[shard] = f"it cannot be read ({type(error).__name__})"
        return found

    def write(
        self, shard: int, streams: Mapping[int, TokenStream], names: Mapping[int, str]
    ) -> None:
        """Write `shard`: streams {group: (1, K, D)} of its samples by index, and their names.

        Samples without stream are kept as empty rows; `names` then gives the reason.

        Raises:
            ModalignError: a value has no place in float16, or the disk refused.
        """
        span = self.header.span(shard)
        arrays = self._empty(len(span))
        for row, index in enumerate(span):
            if index not in streams:
                continue
            for group in self.header.stream.names:
                tokens = streams[index][group][0].float().cpu().numpy()
                for name, value in stored(tokens, group, self.header.precision).items():
                    if not np.isfinite(value).all():
                        raise ModalignError(
                            f"group {group!r} of {names[index]} has values that are not finite in "
                            f"{self.header.precision}; {ADVICE[self.header.precision]}"
                        )
                    arrays[name][row] = value
            values = [arrays[name][row] for name in self._tensor_names()]
            arrays[CHECKSUM][row] = checksum(values)
            arrays[IDENTITY][row] = identity(names[index])
            arrays[PRESENT][row] = 1
        path = self._file(shard)
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            save_file(arrays, unfinished)
            said = {
                "sha256": digest(unfinished),
                "samples": len(span),
                "skipped": {index: names[index] for index in span if index not in streams},
            }
            os.replace(unfinished, path)
            write_whole(path.with_suffix(".json"), (json.dumps(said, indent=1) + "\n").encode())
        except (OSError, SafetensorError) as error:
            raise ModalignError(f"cannot write {path}: {error}") from error
        finally:
            unfinished.unlink(missing_ok=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _opened=_opener(state["path"]))

    def _file(self, shard: int) -> Path:
        return _shard_file(self.path, shard)

    def _tensor_names(self) -> list[str]:
        names = self.header.stream.names
        if self.header.precision == "float16":
            return list(names)
        return [name + ending for name in names for ending in ("", SCALE)]

    def _empty(self, rows: int) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {
            PRESENT: np.zeros(rows, np.uint8),
            IDENTITY: np.zeros(rows, np.int64),
            CHECKSUM: np.zeros(rows, np.int64),
        }
        for group in self.header.stream.groups:
            shape = (rows, group.num_tokens, group.dim)
            arrays[group.name] = np.zeros(shape, self.header.precision)
            if self.header.precision == "int8":
                arrays[group.name + SCALE] = np.zeros((*shape[:2], 1), np.float32)
        return arrays

    def _report(self, shard: int, why: str) -> None:
        if shard not in self.damaged:
            self.damaged[shard] = why
            logger.warning(
                "token cache: %s is damaged: %s; delete it and its .json, and encode again",
                self._file(shard),
                why,
            )

    def _require_header(self, wanted: CacheHeader) -> None:
        self.require(wanted.stream, wanted.fingerprint)
        for field in ("encoder", "preprocessing", "data", "length", "samples", "precision"):
            here, asked = getattr(self.header, field), getattr(wanted, field)
            if here != asked:
                raise ModalignError(
                    f"token cache {self.path} was begun with {field} {here!r}, not {asked!r}; "
                    "continue it with the same, or choose another folder"
                )


def _shard_file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:06d}.safetensors"


def _opener(folder: Path) -> Callable[[int], Any]:
    """Opens shards by number, and keeps the last ones open."""

    @lru_cache(OPEN_SHARDS)
    def opened(shard: int) -> Any:
        return safe_open(_shard_file(folder, shard), framework="np")

    return opened
