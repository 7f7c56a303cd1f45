"""Filling a token cache: a data set through a frozen encoder, once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from modalign.data.stored_tokens import CacheHeader, Precision, bytes_per_sample
from modalign.data.token_cache import SHARD_BYTES, TokenCache
from modalign.errors import ModalignError, SampleError
from modalign.fingerprint import fingerprint
from modalign.specs import (
    Dataset,
    EncoderSpec,
    Progress,
    ProgressCallback,
    TargetEncoder,
)
from modalign.tokens import TokenStream

Item = TypeVar("Item")
Result = TypeVar("Result")


def fill_cache(
    path: str | Path,
    dataset: Dataset,
    data: str,
    encoder: TargetEncoder,
    spec: EncoderSpec,
    *,
    precision: Precision = "float16",
    limit: int | None = None,
    batch_size: int = 32,
    threads: int = 4,
    rank: int = 0,
    world_size: int = 1,
    progress: ProgressCallback | None = None,
) -> TokenCache:
    """Encode the pictures of `dataset`, or its first `limit`, into the cache at `path`.

    Started again it continues with the shards that are not there yet. Samples that cannot be used
    are left out and named. Rank r of `world_size` writes shards r, r + world_size, ...; ranks need
    not know of each other.

    Args:
        path: the cache's folder.
        dataset: whose pictures are read, in the order of their indices.
        data: how a user names the data set; part of what the cache is known by.
        encoder: what `spec` built.
        spec: its entry in the catalogue.
        precision: how values are kept.
        limit: needed for a data set without end.
        batch_size: pictures per forward pass.
        threads: which read and decode ahead.
        rank: of this process.
        world_size: number of processes.
        progress: told of every batch.

    Raises:
        ModalignError: the data has no end and there is no limit, the folder holds another cache,
            or the disk refused.
    """
    length = len(dataset) if isinstance(dataset, Sized) else None
    if length is None and limit is None:
        raise ModalignError(f"{data!r} has no end; say how many samples to encode with --limit")
    samples = min(number for number in (length, limit) if number is not None)
    if samples < 1:
        raise ModalignError(f"{data!r} has no samples to encode")
    header = CacheHeader(
        encoder=spec.name,
        stream=encoder.stream,
        preprocessing=spec.preprocessing,
        fingerprint=fingerprint(encoder, spec.modality),
        data=data,
        length=length,
        samples=samples,
        precision=precision,
        shard_samples=max(1, SHARD_BYTES // bytes_per_sample(encoder.stream, precision)),
    )
    cache = TokenCache.create(path, header)
    header = cache.header
    shards = [shard for shard in range(rank, header.num_shards, world_size) if not cache.has(shard)]
    total, done = sum(len(header.span(shard)) for shard in shards), 0
    with ThreadPoolExecutor(threads) as pool:
        for shard in shards:
            streams: dict[int, TokenStream] = {}
            names: dict[int, str] = {}
            span = header.span(shard)
            batches = [
                span[start : start + batch_size] for start in range(0, len(span), batch_size)
            ]
            reader = Reader(dataset, encoder)
            for read in ahead(pool, reader, batches, threads):
                names.update(read.names)
                if read.batch is not None:
                    stream = encoder.encode(read.batch)
                    for row, index in enumerate(read.indices):
                        streams[index] = {
                            # Copied: a view would keep the whole batch alive.
                            name: tokens[row : row + 1].to("cpu", torch.float32, copy=True)
                            for name, tokens in stream.items()
                        }
                done += len(read.names)
                if progress is not None:
                    progress(Progress("encoding", done, total))
            cache.write(shard, streams, names)
    return cache


class Read:
    """One batch as it comes from disk; `names` of the bad ones say what is wrong with them."""

    def __init__(self, batch: Tensor | None, indices: Sequence[int], names: dict[int, str]) -> None:
        self.batch, self.indices, self.names = batch, indices, names


class Reader:
    """Reads and prepares the pictures of some indices."""

    def __init__(self, dataset: Dataset, encoder: TargetEncoder) -> None:
        self.dataset, self.encoder = dataset, encoder

    def __call__(self, indices: Sequence[int]) -> Read:
        """The batch of those that can be used."""
        names, good, images = {}, [], []
        for index in indices:
            try:
                example = self.dataset.example(index)
            except SampleError as error:
                names[index] = str(error)
                continue
            names[index] = example.identifier
            if example.image is None:
                names[index] = f"{example.identifier}: there is no picture"
                continue
            good.append(index)
            images.append(example.image)
        return Read(self.encoder.prepare(images) if images else None, good, names)


def ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    depth: int,
) -> Iterator[Result]:
    """`function` of each item, in order, with at most `depth` of them computed ahead."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
