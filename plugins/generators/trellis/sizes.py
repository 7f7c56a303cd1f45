"""The released image-large pipeline and our mini, as data: what each network is made of."""

from __future__ import annotations

from typing import Any

from modalign import TokenGroup, TokenStreamSpec

from .config import ModelFile, Normalization, PipelineArgs, PipelineFile, SamplerEntry

REPOSITORY = "microsoft/TRELLIS-image-large"
SAMPLER = SamplerEntry(
    args={"sigma_min": 1e-5},
    params={"steps": 25, "cfg_strength": 5.0, "cfg_interval": (0.5, 1.0), "rescale_t": 3.0},
)

LARGE_PIPELINE = PipelineFile(
    name="TrellisImageTo3DPipeline",
    args=PipelineArgs(
        models={
            "sparse_structure_flow_model": "ckpts/ss_flow_img_dit_L_16l8_fp16",
            "sparse_structure_decoder": "ckpts/ss_dec_conv3d_16l8_fp16",
            "slat_flow_model": "ckpts/slat_flow_img_dit_L_64l8p2_fp16",
            "slat_decoder_mesh": "ckpts/slat_dec_mesh_swin8_B_64l8m256c_fp16",
        },
        sparse_structure_sampler=SAMPLER,
        slat_sampler=SAMPLER,
        slat_normalization=Normalization(
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
        ),
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


LARGE_MODELS = {
    "sparse_structure_flow_model": ModelFile(
        name="SparseStructureFlowModel", args=_flow_args(resolution=16, patch_size=1)
    ),
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
    "slat_flow_model": ModelFile(
        name="SLatFlowModel",
        args=_flow_args(resolution=64, patch_size=2, num_io_res_blocks=2, io_block_channels=[128]),
    ),
    "slat_decoder_mesh": ModelFile(
        name="SLatMeshDecoder",
        args={
            "resolution": 64,
            "model_channels": 768,
            "latent_channels": 8,
            "num_blocks": 12,
            "num_heads": 12,
            "mlp_ratio": 4,
            "window_size": 8,
        },
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
        },
        sparse_structure_sampler=SAMPLER,
        slat_sampler=SAMPLER,
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
