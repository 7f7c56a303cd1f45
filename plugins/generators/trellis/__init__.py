"""TRELLIS (arXiv:2412.01506): tokens of a picture or a text to a 3-D asset, in plain PyTorch.

`generator` holds the whole path; `loader` reads the official files, `models` keeps them in memory;
everything else is a network or a piece of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from modalign_plugins.weights import sources

from modalign import GeneratorSpec, TokenStream, TokenStreamSpec, hookimpl, installed

from .config import ModelFile, PipelineFile, SamplerSettings, TrellisConfig
from .editing import box
from .encoding import RELEASED_ENCODERS, Encoders, Views, load_encoders
from .formats import possible
from .generator import Trellis
from .loader import PIPELINE_FILE, SAMPLED, load_pipeline, random_pipeline
from .preprocess import object_picture
from .sizes import (
    LARGE_MODELS,
    LARGE_PIPELINE,
    LARGE_STREAM,
    MINI_FOLDER,
    MINI_MODELS,
    MINI_PIPELINE,
    MINI_STREAM,
    REPOSITORY,
    TEXT_ENCODER,
    TEXT_PIPELINES,
    TEXT_STREAM,
    TextPipeline,
)
from .voxels import voxelize

IMAGE_DOMAIN = "one object on black, cropped to 1.2 x its bounding box"

__all__ = ["SamplerSettings", "Trellis", "TrellisConfig", "Views", "box", "voxelize"]


def _build(
    name: str,
    repository: str,
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
    elif weights != "pretrained":
        built = load_pipeline(Path(weights), device=device, dtype=dtype)
    elif not repository:
        built = load_pipeline(sources.shipped(MINI_FOLDER), device=device, dtype=dtype)
    else:
        built = load_pipeline(
            _downloaded_pipeline(name, repository, pipeline),
            device=device,
            dtype=dtype,
            stem_of=partial(_downloaded_stem, name, repository),
        )
    make_null = None
    if stream is TEXT_STREAM:
        kind = "random" if weights == "random" else "pretrained"
        make_null = partial(_empty_text, weights=kind, device=device, dtype=dtype)
    trellis = Trellis(*built, accepts=stream, make_null=make_null)
    if weights != "random":
        trellis.load_encoders = partial(_load_encoders, name, weights, repository, device, dtype)
    return trellis


def _load_encoders(
    name: str,
    weights: str | Path,
    repository: str,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Encoders:
    """Both encoders; those of text pipelines are in the repository of the image pipeline."""
    if weights != "pretrained":
        folder = Path(weights)
    elif not repository:
        folder = sources.shipped(MINI_FOLDER)
    else:
        stems = RELEASED_ENCODERS.values()
        files = [f"{stem}.{suffix}" for stem in stems for suffix in ("json", "safetensors")]
        folder = sources.downloaded(name, REPOSITORY, [PIPELINE_FILE, *files])
    return load_encoders(folder, device=device, dtype=dtype)


def _downloaded_pipeline(name: str, repository: str, pipeline: PipelineFile) -> Path:
    """The folder with pipeline.json, and whatever of the repository every format needs."""
    entries = [pipeline.args.models[role] for role in (*SAMPLED, "slat_decoder_mesh")]
    own = [entry for entry in entries if _home(repository, entry)[0] == repository]
    files = [f"{entry}.{suffix}" for entry in own for suffix in ("json", "safetensors")]
    return sources.downloaded(name, repository, [PIPELINE_FILE, *files])


def _downloaded_stem(name: str, repository: str, entry: str) -> Path:
    """The files of an entry of pipeline.json, from the repository that it names."""
    home, inner = _home(repository, entry)
    return sources.downloaded(name, home, [f"{inner}.json", f"{inner}.safetensors"]) / inner


def _home(repository: str, entry: str) -> tuple[str, str]:
    """Repository and path of an entry: "ckpts/x" is its own, "owner/name/ckpts/x" another's."""
    parts = entry.split("/")
    if len(parts) < 4:
        return repository, entry
    return "/".join(parts[:2]), "/".join(parts[2:])


def _empty_text(**options: Any) -> TokenStream:
    """The tokens of the empty text, which text pipelines were trained to do without.

    The encoder is built for this one call.
    """
    encoder = installed().get("encoders", TEXT_ENCODER).build(**options)
    return encoder.encode(encoder.prepare([""]))


def _text_spec(name: str, text: TextPipeline) -> GeneratorSpec:
    return GeneratorSpec(
        name=name,
        summary=f"TRELLIS from text: {text.parameters} parameters, meshes from a 256^3 grid",
        build=partial(
            _build, name, text.repository, text.pipeline, text.models, stream=TEXT_STREAM
        ),
        accepts=TEXT_STREAM,
        formats=possible(text.pipeline.args.models),
        source=f"{text.repository} (arXiv:2412.01506); decoders from {REPOSITORY}",
        license="MIT",
        null_condition="the tokens of an empty text",
        image_domain="none: it reads text",
    )


@hookimpl
def modalign_generators() -> list[GeneratorSpec]:
    """TRELLIS image-large, the mini, and the three that read text."""
    image: dict[str, Any] = {"null_condition": "zeros", "image_domain": IMAGE_DOMAIN}
    return [
        GeneratorSpec(
            name="trellis-image-large",
            summary="TRELLIS image-large: 1.2 B parameters, meshes from a 256^3 grid",
            build=partial(
                _build,
                "trellis-image-large",
                REPOSITORY,
                LARGE_PIPELINE,
                LARGE_MODELS,
                LARGE_STREAM,
            ),
            accepts=LARGE_STREAM,
            formats=possible(LARGE_PIPELINE.args.models),
            source=f"{REPOSITORY} (arXiv:2412.01506)",
            license="MIT",
            crop=partial(object_picture, size=518),
            **image,
        ),
        GeneratorSpec(
            name="trellis-mini",
            summary="the same networks at a quarter of the resolutions, trained on the toy world",
            build=partial(_build, "trellis-mini", "", MINI_PIPELINE, MINI_MODELS, MINI_STREAM),
            accepts=MINI_STREAM,
            formats=possible(MINI_PIPELINE.args.models),
            source="ships with modalign; trained by examples/mini",
            license="Apache-2.0",
            crop=partial(object_picture, size=112),
            **image,
        ),
        *(_text_spec(name, text) for name, text in TEXT_PIPELINES.items()),
    ]
