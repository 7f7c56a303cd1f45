"""From the official folder layout to networks, each read only when its stage runs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from modalign_plugins.generators.trellis.config import ModelFile
from modalign_plugins.generators.trellis.layers import SparseConv3d
from modalign_plugins.generators.trellis.loader import cast_trunk, model_stem
from modalign_plugins.generators.trellis.structure_vae import SparseStructureDecoder
from pydantic import BaseModel, ValidationError
from torch import nn

from modalign import WeightsError

from .config import PipelineFile
from .decoder import ShapeDecoder, TextureDecoder
from .flow import LatentFlowModel, StructureFlowModel

PIPELINE_FILE = "pipeline.json"
# "Elastic" classes are the same networks with a training-time memory scheme around them.
CLASSES: dict[str, Callable[..., nn.Module]] = {
    "SparseStructureFlowModel": StructureFlowModel,
    "SparseStructureDecoder": SparseStructureDecoder,
    "SLatFlowModel": LatentFlowModel,
    "ElasticSLatFlowModel": LatentFlowModel,
    "FlexiDualGridVaeDecoder": ShapeDecoder,
    "SparseUnetVaeDecoder": TextureDecoder,
}
# Arguments that select what our classes always do; any other value is another network. A list has
# one entry per level.
FIXED_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "pe_mode": ("rope",),
    "rope_freq": (1.0, 10000.0),
    "share_mod": (True,),
    "patch_size": (1,),
    "qk_rms_norm": (True,),
    "qk_rms_norm_cross": (True,),
    "norm_type": ("layer",),
    "block_type": ("SparseConvNeXtBlock3d",),
    "up_block_type": ("SparseResBlockC2S3d",),
    "block_args": ({},),
    "voxel_margin": (0.5,),
    # The class settles it, and the tensors tell if it is the wrong one.
    "pred_subdiv": (True, False),
    # How the reference trained, not what it computes.
    "initialization": ("vanilla", "scaled"),
    "dtype": ("float32", "float16", "bfloat16"),
    "use_fp16": (True, False),
    "use_checkpoint": (True, False),
}
# Places turned into tables, which we compute.
DERIVED_TENSORS = ("rope_phases",)

Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class Networks:
    """The six networks from a condition to a mesh, each called for where it is used.

    A call reads the weights, or returns what is kept; what a caller lets go of is freed.
    """

    structure_flow: Callable[[], StructureFlowModel]
    structure_decoder: Callable[[], SparseStructureDecoder]
    shape_flow: Callable[[], LatentFlowModel]
    shape_decoder: Callable[[], ShapeDecoder]
    texture_flow: Callable[[], LatentFlowModel]
    texture_decoder: Callable[[], TextureDecoder]


# Field of `Networks`: role in pipeline.json, class.
ROLES: dict[str, tuple[str, type[nn.Module]]] = {
    "structure_flow": ("sparse_structure_flow_model", StructureFlowModel),
    "structure_decoder": ("sparse_structure_decoder", SparseStructureDecoder),
    "shape_flow": ("shape_slat_flow_model_512", LatentFlowModel),
    "shape_decoder": ("shape_slat_decoder", ShapeDecoder),
    "texture_flow": ("tex_slat_flow_model_512", LatentFlowModel),
    "texture_decoder": ("tex_slat_decoder", TextureDecoder),
}


def read_pipeline(folder: Path) -> PipelineFile:
    """The pipeline.json of a folder.

    Raises:
        WeightsError: it is missing, not JSON, lacks what we read, or lacks a model.
    """
    path = folder / PIPELINE_FILE
    pipeline = _read(path, PipelineFile)
    missing = sorted({role for role, _ in ROLES.values()} - set(pipeline.args.models))
    if missing:
        raise WeightsError(f"{path} names no model for {', '.join(missing)}")
    return pipeline


def files_by_repository(pipeline: PipelineFile, repository: str) -> dict[str, list[str]]:
    """The files of all networks, by the repository they are in; `repository` is the pipeline's."""
    files: dict[str, list[str]] = {repository: [PIPELINE_FILE]}
    for role, _ in ROLES.values():
        owner, stem = _split(pipeline.args.models[role])
        names = [f"{stem}.json", f"{stem}.safetensors"]
        files.setdefault(owner or repository, []).extend(names)
    return files


def load_networks(
    folder: Path,
    pipeline: PipelineFile,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    others: Mapping[str, Path] | None = None,
) -> Networks:
    """The networks of a pipeline in `folder`. All files are checked now, weights are read later.

    `others` holds folders of further repositories; one that is not there is looked for beside
    `folder`, then in it.

    Raises:
        WeightsError: a file is missing, damaged, or of another model; the message names it.
    """
    loads: dict[str, Any] = {}
    for field, (role, expected) in ROLES.items():
        entry = pipeline.args.models[role]
        owner, inner = _split(entry)
        known = (others or {}).get(owner)
        stem = known / inner if known else model_stem(folder, entry)
        checked_model(stem, expected)
        loads[field] = partial(load_model, stem, expected, device=device, dtype=dtype)
    return Networks(**loads)


def random_networks(
    files: Mapping[str, ModelFile], *, device: str | torch.device, dtype: torch.dtype
) -> Networks:
    """Networks of given architectures with random weights, all kept; one file per role."""
    kept: dict[str, Any] = {}
    for field, (role, _) in ROLES.items():
        with torch.device(device):
            model = build_model(files[role], f"the built-in {role}")
        cast_trunk(model, dtype)
        model.eval().requires_grad_(False)
        kept[field] = partial(_same, model)
    return Networks(**kept)


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
            continue
        if name not in FIXED_ARGUMENTS:
            raise WeightsError(f"{origin}: {file.name} has no argument {name!r}")
        entries = value if isinstance(value, list) else [value]
        if not all(entry in FIXED_ARGUMENTS[name] for entry in entries):
            raise WeightsError(f"{origin}: {name} = {value!r} is not supported by this plugin")
    try:
        return build(**arguments)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{origin}: {error}") from error


def checked_model(stem: Path, expected: type[nn.Module]) -> tuple[nn.Module, dict[str, str]]:
    """The model at <stem>.json on the meta device, and its tensors' names in <stem>.safetensors.

    Only headers are read. A sparse convolution's tensors lie one level higher in the official
    files (`conv.weight`) than in TRELLIS's and ours (`conv.conv.weight`): both are understood.

    Raises:
        WeightsError: a file is missing, damaged, or not of the `expected` class.
    """
    from safetensors import SafetensorError, safe_open

    description, weights = _suffixed(stem, ".json"), _suffixed(stem, ".safetensors")
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
        with safe_open(weights, framework="pt") as opened:
            got = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
    except SafetensorError as error:
        raise WeightsError(f"{weights} is damaged ({error}); download it again") from error
    inner = _inner_names(model)
    names = {
        inner.get(name, name): name
        for name in got
        if name.rpartition(".")[2] not in DERIVED_TENSORS
    }
    expected_shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    misfits = [
        *(f"{name} is missing" for name in sorted(set(expected_shapes) - set(names))),
        *(f"{names[name]} is unknown" for name in sorted(set(names) - set(expected_shapes))),
        *(
            f"{names[name]} is {got[names[name]]}, expected {shape}"
            for name, shape in expected_shapes.items()
            if name in names and got[names[name]] != shape
        ),
    ]
    if misfits:
        shown = "; ".join(misfits[:3]) + (f"; and {len(misfits) - 3} more" if misfits[3:] else "")
        raise WeightsError(f"{weights} does not fit the .json beside it: {shown}")
    return model, names


def load_model(
    stem: Path, expected: type[nn.Module], *, device: str | torch.device, dtype: torch.dtype
) -> nn.Module:
    """The frozen model at <stem>, tensor by tensor straight to its device and type.

    Raises:
        WeightsError: a file is missing, damaged, or not of the `expected` class.
    """
    from safetensors import safe_open

    model, names = checked_model(stem, expected)
    cast_trunk(model, dtype)
    types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    with safe_open(_suffixed(stem, ".safetensors"), framework="pt", device=str(device)) as opened:
        tensors = {name: opened.get_tensor(names[name]).to(types[name]) for name in types}
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


def _inner_names(model: nn.Module) -> dict[str, str]:
    """Official names of the sparse convolutions' tensors, and ours."""
    names = {}
    for path, module in model.named_modules():
        if isinstance(module, SparseConv3d):
            names.update({f"{path}.{part}": f"{path}.conv.{part}" for part in ("weight", "bias")})
    return names


def _split(entry: str) -> tuple[str, str]:
    """The repository, "" for the pipeline's own, and the path of a model's entry."""
    parts = entry.split("/")
    return ("/".join(parts[:2]), "/".join(parts[2:])) if len(parts) > 2 else ("", entry)


def _same(model: nn.Module) -> nn.Module:
    return model


def _suffixed(stem: Path, suffix: str) -> Path:
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
