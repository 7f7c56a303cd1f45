"""The released '512' pipeline as data: what each network is made of, how each stage samples."""

from __future__ import annotations

from typing import Any

from modalign_plugins.generators.trellis.config import ModelFile, Normalization

from modalign import TokenGroup, TokenStreamSpec

from .config import PipelineArgs, PipelineFile, SamplerEntry

REPOSITORY = "microsoft/TRELLIS.2-4B"
LATENT_CHANNELS = 32
# The official files hold the latents' means and deviations; random weights have none to match.
_UNSCALED = Normalization(mean=(0.0,) * LATENT_CHANNELS, std=(1.0,) * LATENT_CHANNELS)


def _sampler(
    strength: float, rescale: float, interval: tuple[float, float], rescale_t: float
) -> SamplerEntry:
    return SamplerEntry(
        args={"sigma_min": 1e-5},
        params={
            "steps": 12,
            "guidance_strength": strength,
            "guidance_rescale": rescale,
            "guidance_interval": interval,
            "rescale_t": rescale_t,
        },
    )


PIPELINE = PipelineFile(
    name="Trellis2ImageTo3DPipeline",
    args=PipelineArgs(
        models={
            "sparse_structure_flow_model": "ckpts/ss_flow_img_dit_1_3B_64_bf16",
            "sparse_structure_decoder": (
                "microsoft/TRELLIS-image-large/ckpts/ss_dec_conv3d_16l8_fp16"
            ),
            "shape_slat_flow_model_512": "ckpts/slat_flow_img2shape_dit_1_3B_512_bf16",
            "shape_slat_decoder": "ckpts/shape_dec_next_dc_f16c32_fp16",
            "tex_slat_flow_model_512": "ckpts/slat_flow_imgshape2tex_dit_1_3B_512_bf16",
            "tex_slat_decoder": "ckpts/tex_dec_next_dc_f16c32_fp16",
        },
        sparse_structure_sampler=_sampler(7.5, 0.7, (0.6, 1.0), 5.0),
        shape_slat_sampler=_sampler(7.5, 0.5, (0.6, 1.0), 3.0),
        tex_slat_sampler=_sampler(1.0, 0.0, (0.6, 0.9), 3.0),
        shape_slat_normalization=_UNSCALED,
        tex_slat_normalization=_UNSCALED,
    ),
)


def _flow_args(resolution: int, in_channels: int, out_channels: int) -> dict[str, Any]:
    return {
        "resolution": resolution,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "model_channels": 1536,
        "cond_channels": 1024,
        "num_blocks": 30,
        "num_heads": 12,
        "mlp_ratio": 5.3334,
    }


_DECODER: dict[str, Any] = {
    "latent_channels": LATENT_CHANNELS,
    "model_channels": [1024, 512, 256, 128, 64],
    "num_blocks": [4, 16, 8, 4, 0],
}
MODELS = {
    "sparse_structure_flow_model": ModelFile(
        name="SparseStructureFlowModel", args=_flow_args(16, 8, 8)
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
    "shape_slat_flow_model_512": ModelFile(
        name="SLatFlowModel", args=_flow_args(32, LATENT_CHANNELS, LATENT_CHANNELS)
    ),
    "shape_slat_decoder": ModelFile(name="FlexiDualGridVaeDecoder", args=_DECODER),
    "tex_slat_flow_model_512": ModelFile(
        name="SLatFlowModel", args=_flow_args(32, 2 * LATENT_CHANNELS, LATENT_CHANNELS)
    ),
    "tex_slat_decoder": ModelFile(name="SparseUnetVaeDecoder", args=_DECODER),
}

# What the networks were trained on: the tokens of a DINOv3 before its own norm, normalised.
STREAM = TokenStreamSpec(
    space="dinov3-vitl16/layernorm@512",
    groups=(
        TokenGroup(name="cls", shape=(1,), dim=1024),
        TokenGroup(name="registers", shape=(4,), dim=1024),
        TokenGroup(name="patches", shape=(32, 32), dim=1024),
    ),
)
