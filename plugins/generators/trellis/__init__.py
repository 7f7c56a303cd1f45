"""TRELLIS (arXiv:2412.01506): image tokens to a coloured mesh, in plain PyTorch.

`generator` holds the whole path; `loader` reads the official files; everything else is a network
or a piece of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from modalign_plugins.weights import sources

from modalign import GeneratorSpec, TokenStreamSpec, hookimpl

from .config import ModelFile, PipelineFile, SamplerSettings, TrellisConfig
from .editing import box
from .encoding import RELEASED_ENCODERS, Encoders, Views, load_encoders
from .generator import Trellis
from .loader import load_pipeline, random_pipeline
from .sizes import (
    LARGE_MODELS,
    LARGE_PIPELINE,
    LARGE_STREAM,
    MINI_FOLDER,
    MINI_MODELS,
    MINI_PIPELINE,
    MINI_STREAM,
    REPOSITORY,
)
from .voxels import voxelize

NULL_CONDITION = "zeros"
IMAGE_DOMAIN = "one object on black, cropped to 1.2 x its bounding box"

__all__ = ["SamplerSettings", "Trellis", "TrellisConfig", "Views", "box", "voxelize"]


def _build(
    name: str,
    pipeline: PipelineFile,
    models: Mapping[str, ModelFile],
    stream: TokenStreamSpec,
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:  # a Trellis: its options have names, which the protocol's `**options` hides
    if weights == "random":
        built = random_pipeline(pipeline, models, device=device, dtype=dtype)
        return Trellis(*built, accepts=stream)
    if weights != "pretrained":
        folder = Path(weights)
    elif pipeline is MINI_PIPELINE:
        folder = sources.shipped(MINI_FOLDER)
    else:
        stems = pipeline.args.models.values()
        files = [f"{stem}.{suffix}" for stem in stems for suffix in ("json", "safetensors")]
        folder = sources.downloaded(name, REPOSITORY, ["pipeline.json", *files])
    trellis = Trellis(*load_pipeline(folder, device=device, dtype=dtype), accepts=stream)
    trellis.load_encoders = partial(_load_encoders, name, weights, folder, device, dtype)
    return trellis


def _load_encoders(
    name: str,
    weights: str | Path,
    folder: Path,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Encoders:
    if weights == "pretrained" and folder != sources.shipped(MINI_FOLDER):
        stems = RELEASED_ENCODERS.values()
        files = [f"{stem}.{suffix}" for stem in stems for suffix in ("json", "safetensors")]
        folder = sources.downloaded(name, REPOSITORY, ["pipeline.json", *files])
    return load_encoders(folder, device=device, dtype=dtype)


@hookimpl
def modalign_generators() -> list[GeneratorSpec]:
    """TRELLIS image-large, and the mini."""
    return [
        GeneratorSpec(
            name="trellis-image-large",
            summary="TRELLIS image-large: 1.2 B parameters, meshes from a 256^3 grid",
            build=partial(
                _build, "trellis-image-large", LARGE_PIPELINE, LARGE_MODELS, LARGE_STREAM
            ),
            accepts=LARGE_STREAM,
            source=f"{REPOSITORY} (arXiv:2412.01506)",
            license="MIT",
            null_condition=NULL_CONDITION,
            image_domain=IMAGE_DOMAIN,
        ),
        GeneratorSpec(
            name="trellis-mini",
            summary="the same networks at a quarter of the resolutions, trained on the toy world",
            build=partial(_build, "trellis-mini", MINI_PIPELINE, MINI_MODELS, MINI_STREAM),
            accepts=MINI_STREAM,
            source="ships with modalign; trained by examples/mini",
            license="Apache-2.0",
            null_condition=NULL_CONDITION,
            image_domain=IMAGE_DOMAIN,
        ),
    ]
