"""From the official folder layout to models: pipeline.json, <model>.json, <model>.safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from modalign import WeightsError

from .architectures import (
    TRELLIS,
    Architectures,
    build_model,
    cast_trunk,
    random_model,
    trunk_layers,
)
from .config import ModelFile, PipelineFile, TrellisConfig
from .gaussians import SLatGaussianDecoder
from .models import Models, StoredNetwork
from .radiance_field import SLatRadianceFieldDecoder
from .slat_flow import SLatFlowModel
from .slat_vae import SLatMeshDecoder
from .structure_flow import SparseStructureFlowModel
from .structure_vae import SparseStructureDecoder

PIPELINE_FILE = "pipeline.json"
ROLES: dict[str, type[nn.Module]] = {
    "sparse_structure_flow_model": SparseStructureFlowModel,
    "sparse_structure_decoder": SparseStructureDecoder,
    "slat_flow_model": SLatFlowModel,
    "slat_decoder_mesh": SLatMeshDecoder,
    "slat_decoder_gs": SLatGaussianDecoder,
    "slat_decoder_rf": SLatRadianceFieldDecoder,
}
SAMPLED = tuple(ROLES)[:3]  # what every format needs
Record = TypeVar("Record", bound=BaseModel)


def read_pipeline(folder: Path) -> PipelineFile:
    """The pipeline.json of a folder.

    Raises:
        WeightsError: it is missing, not JSON, lacks what we read, or lacks a model.
    """
    path = folder / PIPELINE_FILE
    pipeline = read_record(path, PipelineFile)
    missing = [role for role in SAMPLED if role not in pipeline.args.models]
    if missing:
        raise WeightsError(f"{path} names no model for {', '.join(missing)}")
    decoders = [role for role in ROLES if role not in SAMPLED]
    if not any(role in pipeline.args.models for role in decoders):
        raise WeightsError(f"{path} names no decoder; expected any of {', '.join(decoders)}")
    return pipeline


def load_pipeline(
    folder: Path,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    stem_of: Callable[[str], Path] | None = None,
) -> tuple[Models, TrellisConfig]:
    """The models of a folder, checked now and loaded when used, and its sampling defaults.

    `stem_of` finds the files of an entry of pipeline.json; `model_stem` if None. Those of the
    decoders of Gaussians and radiance fields are looked for when they are first asked for.

    Raises:
        WeightsError: a file is missing, damaged, or of another model; the message names it.
    """
    pipeline = read_pipeline(folder)
    entries = {role: entry for role, entry in pipeline.args.models.items() if role in ROLES}
    place = stem_of or partial(model_stem, folder)

    def find(role: str) -> StoredNetwork:
        return open_model(place(entries[role]), ROLES[role], device=device, dtype=dtype)

    models = Models(entries, pipeline.args.slat_normalization, device, find=find)
    models.require(*(role for role in (*SAMPLED, "slat_decoder_mesh") if role in entries))
    return models, _defaults(pipeline)


def random_pipeline(
    pipeline: PipelineFile,
    files: Mapping[str, ModelFile],
    *,
    device: str | torch.device,
    dtype: torch.dtype,
) -> tuple[Models, TrellisConfig]:
    """Models of given architectures with random weights; `files` holds one entry per role."""
    built = {
        role: random_model(files[role], f"the built-in {role}", device=device, dtype=dtype)
        for role in pipeline.args.models
    }
    return Models(built, pipeline.args.slat_normalization, device, built=built), _defaults(pipeline)


def _defaults(pipeline: PipelineFile) -> TrellisConfig:
    return TrellisConfig(
        structure=pipeline.args.sparse_structure_sampler.settings(),
        latent=pipeline.args.slat_sampler.settings(),
        fill_cavities=pipeline.args.fill_cavities,
    )


def model_stem(folder: Path, entry: str) -> Path:
    """The path of a model without its suffix; `entry` is relative, or <owner>/<repo>/<path>.

    Entries of the second kind point into another repository. A copy of that repository beside
    `folder` is read where there is one, in the same folder otherwise.
    """
    parts = entry.split("/")
    places = [folder / entry]
    if len(parts) > 2:
        inner = "/".join(parts[2:])
        places += [folder.parent / parts[1] / inner, folder / inner]
    for place in places:
        if _with_suffix(place, ".json").is_file():
            return place
    return places[0]


def load_model(stem: Path, expected: type[nn.Module]) -> nn.Module:
    """The model at <stem>.json and <stem>.safetensors, frozen, in float32 on the CPU.

    Raises:
        WeightsError: a file is missing, damaged, or not of the `expected` class.
    """
    return open_model(stem, expected, device="cpu", dtype=torch.float32).load()


def open_model(
    stem: Path,
    expected: type[nn.Module],
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    architectures: Architectures = TRELLIS,
) -> StoredNetwork:
    """The model at <stem>.json and <stem>.safetensors, checked and not yet loaded.

    Raises:
        WeightsError: a file is missing, damaged, or not of the `expected` class.
    """
    description, weights = _with_suffix(stem, ".json"), _with_suffix(stem, ".safetensors")
    file = read_record(description, ModelFile)
    with torch.device("meta"):
        model = build_model(file, str(description), architectures)
    if not isinstance(model, expected):
        raise WeightsError(
            f"{description} describes a {file.name}, but the pipeline needs a {expected.__name__}"
        )
    cast_trunk(model, dtype)
    expected_tensors = model.state_dict()
    with _opened(weights) as tensors:
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
    ours = architectures.renamed(model)
    stored = {
        ours.get(name, name): name
        for name in shapes
        if name.rpartition(".")[2] not in architectures.computed
    }
    _check_shapes(expected_tensors, shapes, stored, weights)

    def load() -> nn.Module:
        """Tensor by tensor to device and dtype: no second copy of the network exists."""
        with torch.device("meta"):
            empty = build_model(file, str(description), architectures)
        with _opened(weights) as tensors:
            found = {
                name: tensors.get_tensor(stored[name]).to(device).to(wanted.dtype)
                for name, wanted in expected_tensors.items()
            }
        empty.load_state_dict(found, assign=True)
        return empty.eval().requires_grad_(False)

    return StoredNetwork(sum(x.numel() * x.element_size() for x in expected_tensors.values()), load)


@contextmanager
def _opened(weights: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not weights.is_file():
        raise WeightsError(f"{weights} is missing; download it again")
    try:
        with safe_open(weights, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise WeightsError(f"{weights} is damaged ({error}); download it again") from error


def save_model(model: nn.Module, file: ModelFile, stem: Path, dtype: torch.dtype) -> None:
    """Write a model as <stem>.json and <stem>.safetensors, its trunk in `dtype`."""
    from safetensors.torch import save_file

    cast = {id(tensor) for layer in trunk_layers(model) for tensor in layer.parameters()}
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors = {
        name: tensor.detach().to("cpu", dtype if id(tensor) in cast else None).contiguous()
        for name, tensor in named.items()
        if name in model.state_dict()
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    _with_suffix(stem, ".json").write_text(json.dumps(file.model_dump(), indent=2) + "\n")
    save_file(tensors, _with_suffix(stem, ".safetensors"))


def _with_suffix(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)  # with_suffix would cut a name at its first dot


def read_record(path: Path, record: type[Record]) -> Record:
    """The content of a .json file.

    Raises:
        WeightsError: it is missing, damaged, or describes something else.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is missing; download it again")
    try:
        return record.model_validate(json.loads(path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is damaged: {error}") from error
    except ValidationError as error:
        where = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
        raise WeightsError(f"{path} does not describe what it should: {where}") from error


def _check_shapes(
    tensors: Mapping[str, Tensor],
    got: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, str],
    path: Path,
) -> None:
    """Compare with what a file holds; `stored` has its name for each of our tensors."""
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    misfits = [
        *(f"{name} is missing" for name in sorted(set(expected) - set(stored))),
        *(f"{stored[name]} is unknown" for name in sorted(set(stored) - set(expected))),
        *(
            f"{stored[name]} is {got[stored[name]]}, expected {shape}"
            for name, shape in expected.items()
            if name in stored and got[stored[name]] != shape
        ),
    ]
    if misfits:
        shown = "; ".join(misfits[:3]) + (f"; and {len(misfits) - 3} more" if misfits[3:] else "")
        raise WeightsError(f"{path} does not fit the .json beside it: {shown}")
