"""How a token cache keeps numbers: what it says of itself, and values in float16 or int8."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from modalign.tokens import TokenStreamSpec

Precision = Literal["float16", "int8"]
SCALE = ".scale"


class CacheHeader(BaseModel):
    """What a cache holds; `index.json`.

    `length` is the number of samples of the data set, None if it has no end; `samples` how many of
    them, from the first on, belong into the cache.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str
    stream: TokenStreamSpec
    preprocessing: str
    fingerprint: dict[str, list[float]]
    data: str
    length: int | None
    samples: int = Field(gt=0)
    precision: Precision
    shard_samples: int = Field(gt=0)
    version: Literal[1] = 1

    @property
    def num_shards(self) -> int:
        """Files in the complete cache."""
        return -(-self.samples // self.shard_samples)

    def span(self, shard: int) -> range:
        """The indices that `shard` holds."""
        start = shard * self.shard_samples
        return range(start, min(start + self.shard_samples, self.samples))


def bytes_per_sample(stream: TokenStreamSpec, precision: Precision) -> int:
    """What one stream takes on disk: 2 bytes a value, or 1 and a float32 per token."""
    if precision == "float16":
        return 2 * stream.num_values
    return stream.num_values + 4 * stream.num_tokens


def stored(tokens: NDArray[np.float32], name: str, precision: Precision) -> dict[str, Any]:
    """What is kept of the tokens (K, D) of a group.

    As int8 each token is divided by its own scale (K, 1), its largest magnitude over 127: a value
    is then off by at most half of that.
    """
    if precision == "float16":
        with np.errstate(over="ignore"):
            return {name: tokens.astype(np.float16)}
    scale = np.abs(tokens).max(axis=-1, keepdims=True) / 127  # (K, 1)
    scale = np.where(scale == 0, 1, scale).astype(np.float32)  # one that is NaN stays so
    if not np.isfinite(scale).all():
        return {name: tokens, name + SCALE: scale}
    return {name: np.rint(tokens / scale).astype(np.int8), name + SCALE: scale}


def restored(kept: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    """The tokens (K, D) of a group in float32; the inverse of `stored`, up to its rounding."""
    tokens: NDArray[np.float32] = kept[name].astype(np.float32)
    return tokens * kept[name + SCALE] if name + SCALE in kept else tokens


def identity(identifier: str) -> int:
    """A sample's name as a signed 64-bit number."""
    found = hashlib.blake2b(identifier.encode(), digest_size=8).digest()
    return int.from_bytes(found, "little", signed=True)


def checksum(arrays: Iterable[NDArray[Any]]) -> int:
    """CRC-32 of the bytes of several arrays, one after the other."""
    found = 0
    for array in arrays:
        found = zlib.crc32(np.ascontiguousarray(array).data, found)
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
