"""A TRELLIS.2 pipeline of a few thousand weights, in memory and as an official folder."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from modalign_plugins.generators.trellis.architectures import build_model
from modalign_plugins.generators.trellis.config import ModelFile, Normalization
from modalign_plugins.generators.trellis.loader import save_model
from modalign_plugins.generators.trellis.trellis2 import loader
from modalign_plugins.generators.trellis.trellis2.config import (
    PipelineArgs,
    PipelineFile,
    SamplerEntry,
)
from safetensors.torch import load_file, save_file
from torch import nn

from modalign import TokenGroup, TokenStreamSpec

from .trellis_worlds import shaken

STREAM = TokenStreamSpec(
    space="tiny/layernorm",
    groups=(
        TokenGroup(name="cls", shape=(1,), dim=8),
        TokenGroup(name="patches", shape=(2, 2), dim=8),
    ),
)
SAMPLER = SamplerEntry(
    args={"sigma_min": 1e-5},
    params={
        "steps": 3,
        "guidance_strength": 3.0,
        "guidance_rescale": 0.5,
        "guidance_interval": [0.5, 1.0],
        "rescale_t": 3.0,
    },
)
PIPELINE = PipelineFile(
    name="Trellis2ImageTo3DPipeline",
    args=PipelineArgs(
        models={
            "sparse_structure_flow_model": "ckpts/structure",
            "sparse_structure_decoder": "somebody/other/ckpts/decoder",
            "shape_slat_flow_model_512": "ckpts/shape_flow",
            "shape_slat_decoder": "ckpts/shape",
            "tex_slat_flow_model_512": "ckpts/texture_flow",
            "tex_slat_decoder": "ckpts/texture",
        },
        sparse_structure_sampler=SAMPLER,
        shape_slat_sampler=SAMPLER,
        tex_slat_sampler=SAMPLER,
        shape_slat_normalization=Normalization(mean=(0.5,) * 4, std=(2.0,) * 4),
        tex_slat_normalization=Normalization(mean=(-0.5,) * 4, std=(3.0,) * 4),
    ),
)


def flow(resolution: int, in_channels: int) -> dict[str, object]:
    return {
        "resolution": resolution,
        "in_channels": in_channels,
        "out_channels": 4,
        "model_channels": 28,
        "cond_channels": 8,
        "num_blocks": 2,
        "num_heads": 2,
        "mlp_ratio": 2,
        "pe_mode": "rope",
        "share_mod": True,
        "qk_rms_norm": True,
        "qk_rms_norm_cross": True,
    }


DECODER = {
    "latent_channels": 4,
    "model_channels": [32, 16, 8],
    "num_blocks": [1, 1, 0],
    "block_type": ["SparseConvNeXtBlock3d"] * 3,
}
MODELS = {
    "sparse_structure_flow_model": ModelFile(name="SparseStructureFlowModel", args=flow(4, 4)),
    "sparse_structure_decoder": ModelFile(
        name="SparseStructureDecoder",
        args={
            "out_channels": 1,
            "latent_channels": 4,
            "num_res_blocks": 1,
            "num_res_blocks_middle": 1,
            "channels": [8, 4],
        },
    ),
    "shape_slat_flow_model_512": ModelFile(name="SLatFlowModel", args=flow(4, 4)),
    "shape_slat_decoder": ModelFile(name="FlexiDualGridVaeDecoder", args=DECODER),
    "tex_slat_flow_model_512": ModelFile(name="ElasticSLatFlowModel", args=flow(4, 8)),
    "tex_slat_decoder": ModelFile(name="SparseUnetVaeDecoder", args=DECODER),
}


def model(role: str, seed: int = 0) -> nn.Module:
    """The tiny network of a role, no weight of it zero."""
    return shaken(build_model(MODELS[role], role, loader.TRELLIS2), seed)


def write_pipeline(folder: Path) -> None:
    """The tiny pipeline as official folders: names one level higher, and tables we compute."""
    folder.mkdir(parents=True)
    (folder / "pipeline.json").write_text(PIPELINE.model_dump_json())
    for seed, (role, file) in enumerate(MODELS.items()):
        entry = PIPELINE.args.models[role].removeprefix("somebody/other/")
        stem = (folder.parent / "other" if role == "sparse_structure_decoder" else folder) / entry
        save_model(model(role, seed), file, stem, torch.float16)
        weights = stem.with_suffix(".safetensors")
        tensors = load_file(weights)
        if role in ("shape_slat_decoder", "tex_slat_decoder"):
            tensors = {re.sub(r"(conv\d?)\.conv\.", r"\1.", name): x for name, x in tensors.items()}
        if "flow" in role:
            tensors["rope_phases"] = torch.zeros(1)
        save_file(tensors, weights)
