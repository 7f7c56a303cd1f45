"""A pipeline of a few thousand weights, in memory and as an official folder."""

from __future__ import annotations

from pathlib import Path

import torch
from modalign_plugins.generators.trellis import architectures, loader
from modalign_plugins.generators.trellis.config import (
    ModelFile,
    Normalization,
    PipelineArgs,
    PipelineFile,
    SamplerEntry,
)
from modalign_plugins.generators.trellis.gaussians import RELEASED_REPRESENTATION

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
    params={"steps": 3, "cfg_strength": 2.0, "cfg_interval": [0.5, 1.0], "rescale_t": 3.0},
)
PIPELINE = PipelineFile(
    name="TrellisImageTo3DPipeline",
    args=PipelineArgs(
        models={
            "sparse_structure_flow_model": "ckpts/structure",
            "sparse_structure_decoder": "ckpts/decoder",
            "slat_flow_model": "ckpts/flow",
            "slat_decoder_mesh": "ckpts/mesh",
            "slat_decoder_gs": "ckpts/gaussians",
            "slat_decoder_rf": "ckpts/field",
        },
        sparse_structure_sampler=SAMPLER,
        slat_sampler=SAMPLER,
        slat_normalization=Normalization(mean=(0.5,) * 4, std=(2.0,) * 4),
    ),
)
FLOW = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 12,
    "cond_channels": 8,
    "num_blocks": 1,
    "num_heads": 2,
    "qk_rms_norm": True,
    "pe_mode": "ape",
}
DECODER = {
    "resolution": 4,
    "model_channels": 16,
    "latent_channels": 4,
    "num_blocks": 2,
    "num_heads": 2,
    "window_size": 4,
    "attn_mode": "swin",
}
MODELS = {
    "sparse_structure_flow_model": ModelFile(
        name="SparseStructureFlowModel", args={"resolution": 2, **FLOW}
    ),
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
    "slat_flow_model": ModelFile(
        name="ElasticSLatFlowModel", args={"resolution": 4, "io_block_channels": [8], **FLOW}
    ),
    "slat_decoder_mesh": ModelFile(
        name="ElasticSLatMeshDecoder",
        args={**DECODER, "num_groups": 2, "representation_config": {"use_color": True}},
    ),
    "slat_decoder_gs": ModelFile(
        name="ElasticSLatGaussianDecoder",
        args={**DECODER, "representation_config": {**RELEASED_REPRESENTATION, "num_gaussians": 3}},
    ),
    "slat_decoder_rf": ModelFile(
        name="ElasticSLatRadianceFieldDecoder",
        args={**DECODER, "representation_config": {"rank": 2, "dim": 4}},
    ),
}
ENCODERS = {
    "sparse_structure_encoder": ModelFile(
        name="SparseStructureEncoder",
        args={
            "in_channels": 1,
            "latent_channels": 4,
            "num_res_blocks": 1,
            "num_res_blocks_middle": 1,
            "channels": [4, 8],
        },
    ),
    "slat_encoder": ModelFile(
        name="ElasticSLatEncoder",
        args={
            "resolution": 4,
            "in_channels": 256,
            "model_channels": 16,
            "latent_channels": 4,
            "num_blocks": 1,
            "num_heads": 2,
        },
    ),
}


def write_pipeline(folder: Path) -> None:
    """The tiny pipeline as an official folder, its trunks in half precision."""
    folder.mkdir(parents=True)
    (folder / "pipeline.json").write_text(PIPELINE.model_dump_json())
    for seed, (role, file) in enumerate(MODELS.items()):
        model = shaken(architectures.build_model(file, role), seed)
        loader.save_model(model, file, folder / PIPELINE.args.models[role], torch.float16)
