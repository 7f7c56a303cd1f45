"""TRELLIS.2's '512' pipeline: DINOv3 tokens to meshes with a material, on TRELLIS's own parts.

`generator` holds the whole path; `loader` reads the official files; everything else is a network
or a piece of one, or turns voxels into a surface.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from modalign_plugins.generators.trellis.preprocess import object_picture
from modalign_plugins.weights import sources

from modalign import GeneratorSpec, hookimpl

from .config import SamplerSettings, Trellis2Config
from .generator import Trellis2
from .loader import (
    PIPELINE_FILE,
    files_by_repository,
    load_networks,
    random_networks,
    read_pipeline,
)
from .material import MaterialMesh
from .sizes import MODELS, PIPELINE, REPOSITORY, STREAM

NAME = "trellis2-512"
IMAGE_SIZE = 512  # of its encoder

__all__ = ["MaterialMesh", "SamplerSettings", "Trellis2", "Trellis2Config"]


def _build(
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:  # a Trellis2: its options have names, which the protocol's `**options` hides
    if weights == "random":
        networks = random_networks(MODELS, device=device, dtype=dtype)
        return Trellis2(networks, Trellis2Config.of(PIPELINE), STREAM, device)
    folders: dict[str, Path] = {}
    if weights == "pretrained":
        # The file says which networks there are, and one of them lies in TRELLIS's repository.
        folder = sources.downloaded(NAME, REPOSITORY, [PIPELINE_FILE])
        pipeline = read_pipeline(folder)
        for repository, files in files_by_repository(pipeline, REPOSITORY).items():
            folders[repository] = sources.downloaded(NAME, repository, files)
        folder = folders[REPOSITORY]
    else:
        folder = Path(weights)
        pipeline = read_pipeline(folder)
    networks = load_networks(folder, pipeline, device=device, dtype=dtype, others=folders)
    return Trellis2(networks, Trellis2Config.of(pipeline), STREAM, device)


@hookimpl
def modalign_generators() -> list[GeneratorSpec]:
    """TRELLIS.2 at 512 px, meshes from a 512^3 grid."""
    return [
        GeneratorSpec(
            name=NAME,
            summary="TRELLIS.2 at 512: meshes with a material from a 512^3 grid",
            build=_build,
            accepts=STREAM,
            source=f"{REPOSITORY}; its encoder DINOv3 is gated, and is not needed with a head",
            license="MIT (the encoder: DINOv3 License)",
            null_condition="zeros",
            image_domain="one object on black, cropped to its bounding box",
            crop=partial(object_picture, size=IMAGE_SIZE, margin=1.0, longest=1024),
        )
    ]
