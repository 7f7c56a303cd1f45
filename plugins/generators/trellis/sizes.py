"""The released pipelines and our mini, as data: what each network is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modalign import TokenGroup, TokenStreamSpec

from .config import ModelFile, Normalization, PipelineArgs, PipelineFile, SamplerEntry
from .gaussians import RELEASED_REPRESENTATION

REPOSITORY = "microsoft/TRELLIS-image-large"


def _sampler(guidance: float) -> SamplerEntry:
    return SamplerEntry(
        args={"sigma_min": 1e-5},
        params={
            "steps": 25,
            "cfg_strength": guidance,
            "cfg_interval": (0.5, 1.0),
            "rescale_t": 3.0,
        },
    )


IMAGE_SAMPLER = _sampler(5.0)
TEXT_SAMPLER = _sampler(7.5)
# Of the structured latent, one VAE for all released pipelines.
NORMALIZATION = Normalization(
    mean=(
        *(-2.1687545776367188, -0.004347046371549368, -0.13352349400520325),
        *(-0.08418072760105133, -0.5271206498146057, 0.7238689064979553),
        *(-1.1414450407028198, 1.2039363384246826),
    ),
    std=(
        *(2.377650737762451, 2.386378288269043, 2.124418020248413),
        *(2.1748552322387695, 2.663944721221924, 2.371192216873169),
        *(2.6217446327209473, 2.684523105621338),
    ),
)
DECODER_FILES = {
    "sparse_structure_decoder": "ckpts/ss_dec_conv3d_16l8_fp16",
    "slat_decoder_mesh": "ckpts/slat_dec_mesh_swin8_B_64l8m256c_fp16",
    "slat_decoder_gs": "ckpts/slat_dec_gs_swin8_B_64l8gs32_fp16",
    "slat_decoder_rf": "ckpts/slat_dec_rf_swin8_B_64l8r16_fp16",
}
LARGE_PIPELINE = PipelineFile(
    name="TrellisImageTo3DPipeline",
    args=PipelineArgs(
        models={
            "sparse_structure_flow_model": "ckpts/ss_flow_img_dit_L_16l8_fp16",
            "slat_flow_model": "ckpts/slat_flow_img_dit_L_64l8p2_fp16",
            **DECODER_FILES,
        },
        sparse_structure_sampler=IMAGE_SAMPLER,
        slat_sampler=IMAGE_SAMPLER,
        slat_normalization=NORMALIZATION,
    ),
)


def _flow_args(**changes: Any) -> dict[str, Any]:
    return {
        "in_channels": 8,
        "out_channels": 8,
        "model_channels": 1024,
        "cond_channels": 1024,
        "num_blocks": 24,
        "num_heads": 16,
        "mlp_ratio": 4,
        "qk_rms_norm": True,
        **changes,
    }


def _slat_decoder(name: str, **changes: Any) -> ModelFile:
    args = {
        "resolution": 64,
        "model_channels": 768,
        "latent_channels": 8,
        "num_blocks": 12,
        "num_heads": 12,
        "mlp_ratio": 4,
        "window_size": 8,
    }
    return ModelFile(name=name, args=args | changes)


DECODERS = {
    "sparse_structure_decoder": ModelFile(
        name="SparseStructureDecoder",
        args={
            "out_channels": 1,
            "latent_channels": 8,
            "num_res_blocks": 2,
            "num_res_blocks_middle": 2,
            "channels": [512, 128, 32],
        },
    ),
    "slat_decoder_mesh": _slat_decoder("SLatMeshDecoder"),
    "slat_decoder_gs": _slat_decoder(
        "SLatGaussianDecoder", representation_config=RELEASED_REPRESENTATION
    ),
    "slat_decoder_rf": _slat_decoder(
        "SLatRadianceFieldDecoder", representation_config={"rank": 16, "dim": 8}
    ),
}


def _flows(
    *, structure: dict[str, Any] | None = None, io: int = 128, io_blocks: int = 2, **both: Any
) -> dict[str, ModelFile]:
    return {
        "sparse_structure_flow_model": ModelFile(
            name="SparseStructureFlowModel",
            args=_flow_args(resolution=16, patch_size=1, **both, **(structure or {})),
        ),
        "slat_flow_model": ModelFile(
            name="SLatFlowModel",
            args=_flow_args(
                resolution=64,
                patch_size=2,
                num_io_res_blocks=io_blocks,
                io_block_channels=[io],
                **both,
            ),
        ),
    }


LARGE_MODELS = {**_flows(), **DECODERS}


@dataclass(frozen=True)
class TextPipeline:
    """A released pipeline that reads text: its repository, files and networks."""

    repository: str
    parameters: str
    pipeline: PipelineFile
    models: dict[str, ModelFile]


def _text(size: str, letter: str, parameters: str, **flows: Any) -> TextPipeline:
    files = {
        "sparse_structure_flow_model": f"ckpts/ss_flow_txt_dit_{letter}_16l8_fp16",
        "slat_flow_model": f"ckpts/slat_flow_txt_dit_{letter}_64l8p2_fp16",
        **{role: f"{REPOSITORY}/{file}" for role, file in DECODER_FILES.items()},
    }
    return TextPipeline(
        repository=f"microsoft/TRELLIS-text-{size}",
        parameters=parameters,
        pipeline=PipelineFile(
            name="TrellisTextTo3DPipeline",
            args=PipelineArgs(
                models=files,
                sparse_structure_sampler=TEXT_SAMPLER,
                slat_sampler=TEXT_SAMPLER,
                slat_normalization=NORMALIZATION,
            ),
        ),
        models={**_flows(cond_channels=768, **flows), **DECODERS},
    )


TEXT_PIPELINES = {
    "trellis-text-base": _text(
        "base", "B", "0.34 B", model_channels=768, num_blocks=12, num_heads=12
    ),
    "trellis-text-large": _text("large", "L", "1.1 B"),
    "trellis-text-xlarge": _text(
        "xlarge",
        "XL",
        "2.0 B",
        model_channels=1280,
        num_blocks=28,
        io=256,
        io_blocks=3,
        structure={"qk_rms_norm_cross": True},
    ),
}

# A quarter of the resolutions, and narrow enough to sample in seconds on a CPU.
MINI_FOLDER = "trellis-mini"
_MINI_FLOW: dict[str, Any] = {"cond_channels": 128, "mlp_ratio": 3}
MINI_PIPELINE = PipelineFile(
    name="TrellisImageTo3DPipeline",
    args=PipelineArgs(
        models={
            "sparse_structure_flow_model": "ckpts/ss_flow",
            "sparse_structure_decoder": "ckpts/ss_dec",
            "slat_flow_model": "ckpts/slat_flow",
            "slat_decoder_mesh": "ckpts/slat_dec_mesh",
            "slat_decoder_gs": "ckpts/slat_dec_gs",
        },
        sparse_structure_sampler=IMAGE_SAMPLER,
        slat_sampler=IMAGE_SAMPLER,
        slat_normalization=Normalization(mean=(0.0,) * 8, std=(1.0,) * 8),
        fill_cavities=True,
    ),
)
MINI_MODELS = {
    "sparse_structure_flow_model": ModelFile(
        name="SparseStructureFlowModel",
        args=_flow_args(
            resolution=4,
            model_channels=160,
            num_blocks=5,
            num_heads=5,
            patch_size=1,
            **_MINI_FLOW,
        ),
    ),
    "sparse_structure_decoder": ModelFile(
        name="SparseStructureDecoder",
        args={
            "out_channels": 1,
            "latent_channels": 8,
            "num_res_blocks": 1,
            "num_res_blocks_middle": 1,
            "channels": [64, 32, 16],
        },
    ),
    "slat_flow_model": ModelFile(
        name="SLatFlowModel",
        args=_flow_args(
            resolution=16,
            model_channels=128,
            num_blocks=4,
            num_heads=4,
            patch_size=2,
            num_io_res_blocks=2,
            io_block_channels=[32],
            **_MINI_FLOW,
        ),
    ),
    "slat_decoder_mesh": ModelFile(
        name="SLatMeshDecoder",
        args={
            "resolution": 16,
            "model_channels": 128,
            "latent_channels": 8,
            "num_blocks": 3,
            "num_heads": 4,
            "mlp_ratio": 4,
            "window_size": 8,
            "num_groups": 8,
        },
    ),
    # Voxels four times as wide as the released ones, half as many splats, three times as large.
    "slat_decoder_gs": ModelFile(
        name="SLatGaussianDecoder",
        args={
            "resolution": 16,
            "model_channels": 96,
            "latent_channels": 8,
            "num_blocks": 3,
            "num_heads": 3,
            "mlp_ratio": 4,
            "window_size": 8,
            "representation_config": {
                **RELEASED_REPRESENTATION,
                "num_gaussians": 16,
                "scaling_bias": 0.012,
            },
        },
    ),
}


def _stream(encoder: str, size: int, side: int, dim: int) -> TokenStreamSpec:
    return TokenStreamSpec(
        space=f"{encoder}/layernorm@{size}",
        groups=(
            TokenGroup(name="cls", shape=(1,), dim=dim),
            TokenGroup(name="registers", shape=(4,), dim=dim),
            TokenGroup(name="patches", shape=(side, side), dim=dim),
        ),
    )


# What the networks were trained on: the tokens of a DINOv2 before its own norm, normalised.
LARGE_STREAM = _stream("dinov2-vitl14-reg", 518, 37, 1024)
MINI_STREAM = _stream("dinov2-mini-reg", 112, 8, 128)
# Text as CLIP's text tower leaves it: the last layer after the tower's own norm.
TEXT_ENCODER = "clip-text-vitl14"
TEXT_STREAM = TokenStreamSpec(
    space=f"{TEXT_ENCODER}/affine-layernorm@77",
    groups=(TokenGroup(name="tokens", shape=(77,), dim=768),),
)
