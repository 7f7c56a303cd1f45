"""From the official folder layout to networks, each read only when its stage runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from modalign_plugins.generators.trellis.architectures import Architectures, random_model
from modalign_plugins.generators.trellis.config import ModelFile
from modalign_plugins.generators.trellis.layers import SparseConv3d
from modalign_plugins.generators.trellis.loader import model_stem, open_model, read_record
from modalign_plugins.generators.trellis.structure_vae import SparseStructureDecoder
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


def _inner_names(model: nn.Module) -> dict[str, str]:
    """Official names of the sparse convolutions' tensors, and ours: one level deeper."""
    names = {}
    for path, module in model.named_modules():
        if isinstance(module, SparseConv3d):
            names.update({f"{path}.{part}": f"{path}.conv.{part}" for part in ("weight", "bias")})
    return names


TRELLIS2 = Architectures(
    CLASSES,
    FIXED_ARGUMENTS,
    computed=("rope_phases",),  # places turned into tables
    renamed=_inner_names,
)


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
    pipeline = read_record(path, PipelineFile)
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
        stored = open_model(stem, expected, device=device, dtype=dtype, architectures=TRELLIS2)
        loads[field] = stored.load
    return Networks(**loads)


def random_networks(
    files: Mapping[str, ModelFile], *, device: str | torch.device, dtype: torch.dtype
) -> Networks:
    """Networks of given architectures with random weights, all kept; one file per role."""
    kept: dict[str, Any] = {}
    for field, (role, _) in ROLES.items():
        origin = f"the built-in {role}"
        built = random_model(
            files[role], origin, device=device, dtype=dtype, architectures=TRELLIS2
        )
        kept[field] = partial(_same, built)
    return Networks(**kept)


def _split(entry: str) -> tuple[str, str]:
    """The repository, "" for the pipeline's own, and the path of a model's entry."""
    parts = entry.split("/")
    return ("/".join(parts[:2]), "/".join(parts[2:])) if len(parts) > 2 else ("", entry)


def _same(model: nn.Module) -> nn.Module:
    return model
