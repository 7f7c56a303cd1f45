"""What `modalign encode` does: names become an encoder, data and a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

from modalign.data.cached import Cached
from modalign.data.encoding import fill_cache
from modalign.data.sources import parse_source, split_ratio
from modalign.data.stored_tokens import Precision
from modalign.errors import ModalignError, did_you_mean
from modalign.fitting import lacking
from modalign.registry import Registry
from modalign.specs import EncoderSpec, ProgressCallback

NAMED = 10  # samples without tokens that are written out


def encode_data(
    name: str,
    data: str,
    output: Path,
    *,
    precision: str,
    limit: int | None,
    batch_size: int,
    threads: int,
    weights: str,
    device: str,
    registry: Registry,
    progress: ProgressCallback | None = None,
) -> str:
    """Fill the cache at `output`, or this process's share of it; returns what was done, in words.

    torchrun says which of how many processes this is.

    Raises:
        ModalignError: a name, an option or the folder is not what is expected.
    """
    precisions: tuple[Precision, ...] = get_args(Precision)
    if precision not in precisions:
        hint = did_you_mean(precision, precisions)
        raise ModalignError(f"precision {precision!r} is unknown.{hint}")
    described, _ = split_ratio(data)
    dataset, _ = parse_source(data, registry)
    if isinstance(dataset, Cached):
        raise ModalignError(f"data {data!r} names a cache; leave cache=... out to encode it")
    spec = encoder_of(name, registry)
    if spec.modality == "text":
        raise ModalignError(f"encoder {spec.name!r} reads texts; what is encoded are pictures")
    missing = lacking(spec)
    if missing:
        raise ModalignError(f"encoder {missing[0]}")
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    encoder = spec.build(weights=weights, device=device)
    cache = fill_cache(
        output,
        dataset,
        described,
        encoder,
        spec,
        precision=precisions[precisions.index(precision)],
        limit=limit,
        batch_size=batch_size,
        threads=threads,
        rank=int(os.environ.get("RANK", 0)),
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
        progress=progress,
    )
    header = cache.header
    written = list(filter(cache.has, range(header.num_shards)))
    held = sum(len(header.span(shard)) for shard in written)
    skipped = cache.skipped()
    lines = [
        f"{output}: {held - len(skipped):,} of {header.samples:,} samples, {len(written):,} of "
        f"{header.num_shards:,} shards, {header.precision} of {header.encoder!r}"
    ]
    if skipped:
        lines.append(f"{len(skipped):,} could not be encoded:")
        lines.extend(f"  {reason}" for reason in list(skipped.values())[:NAMED])
        if len(skipped) > NAMED:
            lines.append(f"  and {len(skipped) - NAMED:,} more")
    return "\n".join(lines)


def encoder_of(name: str, registry: Registry) -> EncoderSpec:
    """The encoder called `name`, or that of the recipe called so.

    Raises:
        RegistryError: there is neither.
    """
    catalogue = registry.catalogue
    if name in catalogue.recipes and name not in catalogue.encoders:
        name = catalogue.recipes[name].encoder
    spec: EncoderSpec = registry.get("encoders", name)
    return spec
