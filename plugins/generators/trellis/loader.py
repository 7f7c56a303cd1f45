"""From the official folder layout to models: pipeline.json, <model>.json, <model>.safetensors."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from modalign import WeightsError

from .config import ModelFile, Normalization, PipelineFile, TrellisConfig
from .gaussians import SLatGaussianDecoder
from .layers import SparseConv3d
from .radiance_field import SLatRadianceFieldDecoder
from .slat_flow import SLatFlowModel
from .slat_vae import SLatEncoder, SLatMeshDecoder
from .structure_flow import SparseStructureFlowModel
from .structure_vae import SparseStructureDecoder, SparseStructureEncoder

PIPELINE_FILE = "pipeline.json"
# "Elastic" classes are the same networks with a training-time memory scheme around them.
CLASSES: dict[str, Callable[..., nn.Module]] = {
    "SparseStructureFlowModel": SparseStructureFlowModel,
    "SparseStructureDecoder": SparseStructureDecoder,
    "SparseStructureEncoder": SparseStructureEncoder,
    "SLatFlowModel": SLatFlowModel,
    "ElasticSLatFlowModel": SLatFlowModel,
    "SLatMeshDecoder": SLatMeshDecoder,
    "ElasticSLatMeshDecoder": SLatMeshDecoder,
    "SLatGaussianDecoder": SLatGaussianDecoder,
    "ElasticSLatGaussianDecoder": SLatGaussianDecoder,
    "SLatRadianceFieldDecoder": SLatRadianceFieldDecoder,
    "ElasticSLatRadianceFieldDecoder": SLatRadianceFieldDecoder,
    "SLatEncoder": SLatEncoder,
    "ElasticSLatEncoder": SLatEncoder,
}
# Arguments that select what our classes always do; any other value is another network.
FIXED_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "pe_mode": ("ape",),
    "attn_mode": ("swin",),
    "share_mod": (False,),
    "use_skip_connection": (True,),
    "norm_type": ("layer",),
    "representation_config": ({"use_color": True},),
    # How the reference trained, not what it computes.
    "use_fp16": (True, False),
    "use_checkpoint": (True, False),
}
ROLES: dict[str, type[nn.Module]] = {
    "sparse_structure_flow_model": SparseStructureFlowModel,
    "sparse_structure_decoder": SparseStructureDecoder,
    "slat_flow_model": SLatFlowModel,
    "slat_decoder_mesh": SLatMeshDecoder,
}
# Modules whose linear and convolutional layers run in half precision.
TRUNK = ("blocks", "middle_block", "input_blocks", "out_blocks", "upsample")

Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class Models:
    """The four networks from a condition to a mesh, and how their latent is scaled."""

    structure_flow: SparseStructureFlowModel
    structure_decoder: SparseStructureDecoder
    latent_flow: SLatFlowModel
    mesh_decoder: SLatMeshDecoder
    normalization: Normalization


def read_pipeline(folder: Path) -> PipelineFile:
    """The pipeline.json of a folder.

    Raises:
        WeightsError: it is missing, not JSON, lacks what we read, or lacks a model.
    """
    path = folder / PIPELINE_FILE
    pipeline = _read(path, PipelineFile)
    missing = sorted(set(ROLES) - set(pipeline.args.models))
    if missing:
        raise WeightsError(f"{path} names no model for {', '.join(missing)}")
    return pipeline


def load_pipeline(
    folder: Path, *, device: str | torch.device, dtype: torch.dtype
) -> tuple[Models, TrellisConfig]:
    """The models of a folder, frozen, and its sampling defaults.

    Raises:
        WeightsError: a file is missing, damaged, or of another model; the message names it.
    """
    pipeline = read_pipeline(folder)
    models = {
        role: load_model(model_stem(folder, pipeline.args.models[role]), ROLES[role])
        for role in ROLES
    }
    return _assembled(pipeline, models, device, dtype)


def random_pipeline(
    pipeline: PipelineFile,
    files: Mapping[str, ModelFile],
    *,
    device: str | torch.device,
    dtype: torch.dtype,
) -> tuple[Models, TrellisConfig]:
    """Models of given architectures with random weights; `files` holds one entry per role."""
    with torch.device(device):
        models = {role: build_model(files[role], f"the built-in {role}") for role in ROLES}
    return _assembled(pipeline, models, device, dtype)


def _assembled(
    pipeline: PipelineFile,
    models: Mapping[str, nn.Module],
    device: str | torch.device,
    dtype: torch.dtype,
) -> tuple[Models, TrellisConfig]:
    for model in models.values():
        cast_trunk(model, dtype)
        model.to(device).eval().requires_grad_(False)
    found: dict[str, Any] = dict(models)
    config = TrellisConfig(
        structure=pipeline.args.sparse_structure_sampler.settings(),
        latent=pipeline.args.slat_sampler.settings(),
        fill_cavities=pipeline.args.fill_cavities,
    )
    assembled = Models(
        structure_flow=found["sparse_structure_flow_model"],
        structure_decoder=found["sparse_structure_decoder"],
        latent_flow=found["slat_flow_model"],
        mesh_decoder=found["slat_decoder_mesh"],
        normalization=pipeline.args.slat_normalization,
    )
    return assembled, config


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
    """The model at <stem>.json and <stem>.safetensors, in float32 on the CPU.

    Raises:
        WeightsError: a file is missing, damaged, or not of the `expected` class.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    description, weights = _with_suffix(stem, ".json"), _with_suffix(stem, ".safetensors")
    file = _read(description, ModelFile)
    with torch.device("meta"):
        model = build_model(file, str(description))
    if not isinstance(model, expected):
        raise WeightsError(
            f"{description} describes a {file.name}, but the pipeline needs a {expected.__name__}"
        )
    if not weights.is_file():
        raise WeightsError(f"{weights} is missing; download it again")
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise WeightsError(f"{weights} is damaged ({error}); download it again") from error
    _check_tensors(model, tensors, weights)
    model.load_state_dict({name: t.float() for name, t in tensors.items()}, assign=True)
    return model


def build_model(file: ModelFile, origin: str) -> nn.Module:
    """A model with random weights, on the current default device.

    Raises:
        WeightsError: its class or an argument is one that this plugin does not have.
    """
    if file.name not in CLASSES:
        raise WeightsError(
            f"{origin}: unknown model class {file.name!r}; known: {', '.join(CLASSES)}"
        )
    build = CLASSES[file.name]
    accepted = inspect.signature(build).parameters
    arguments = {}
    for name, value in file.args.items():
        if name in accepted:
            arguments[name] = value
        elif name not in FIXED_ARGUMENTS:
            raise WeightsError(f"{origin}: {file.name} has no argument {name!r}")
        elif value not in FIXED_ARGUMENTS[name]:
            raise WeightsError(f"{origin}: {name} = {value!r} is not supported by this plugin")
    try:
        return build(**arguments)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{origin}: {error}") from error


def cast_trunk(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the layers that the reference runs in half precision; the others stay in float32.

    These are the linear and convolutional layers inside blocks. Norms, embedders, and the input
    and output layers keep their precision.
    """
    for layer in _trunk_layers(model):
        layer.to(dtype)


def save_model(model: nn.Module, file: ModelFile, stem: Path, dtype: torch.dtype) -> None:
    """Write a model as <stem>.json and <stem>.safetensors, its trunk in `dtype`."""
    from safetensors.torch import save_file

    cast = {id(tensor) for layer in _trunk_layers(model) for tensor in layer.parameters()}
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors = {
        name: tensor.detach().to("cpu", dtype if id(tensor) in cast else None).contiguous()
        for name, tensor in named.items()
        if name in model.state_dict()
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    _with_suffix(stem, ".json").write_text(json.dumps(file.model_dump(), indent=2) + "\n")
    save_file(tensors, _with_suffix(stem, ".safetensors"))


def _trunk_layers(model: nn.Module) -> Iterator[nn.Module]:
    for name, child in model.named_children():
        if name in TRUNK:
            for layer in child.modules():
                if isinstance(layer, nn.Linear | nn.Conv3d | SparseConv3d):
                    yield layer


def _with_suffix(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)  # with_suffix would cut a name at its first dot


def _read(path: Path, record: type[Record]) -> Record:
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


def _check_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    misfits: Sequence[str] = [
        *(f"{name} is missing" for name in sorted(set(expected) - set(got))),
        *(f"{name} is unknown" for name in sorted(set(got) - set(expected))),
        *(
            f"{name} is {got[name]}, expected {shape}"
            for name, shape in expected.items()
            if name in got and got[name] != shape
        ),
    ]
    if misfits:
        shown = "; ".join(misfits[:3]) + (f"; and {len(misfits) - 3} more" if misfits[3:] else "")
        raise WeightsError(f"{path} does not fit the .json beside it: {shown}")
