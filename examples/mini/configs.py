"""Sizes of the mini TRELLIS: the released one at a quarter of its resolutions."""

from __future__ import annotations

from typing import Any

CONDITION_DIM = 128  # of dinov2-mini-reg
STRUCTURE = 16  # occupancy grid; 64 in the released model
LATENT = 8

ENCODER_ARGS: dict[str, Any] = {
    "in_channels": 1,
    "latent_channels": LATENT,
    "num_res_blocks": 1,
    "num_res_blocks_middle": 1,
    "channels": [16, 32, 64],
}
DECODER_ARGS: dict[str, Any] = {
    "out_channels": 1,
    "latent_channels": LATENT,
    "num_res_blocks": 1,
    "num_res_blocks_middle": 1,
    "channels": [64, 32, 16],
}
STRUCTURE_FLOW_ARGS: dict[str, Any] = {
    "resolution": STRUCTURE // 4,
    "in_channels": LATENT,
    "out_channels": LATENT,
    "model_channels": 160,
    "cond_channels": CONDITION_DIM,
    "num_blocks": 5,
    "num_heads": 5,
    "mlp_ratio": 3,
    "patch_size": 1,
    "qk_rms_norm": True,
}
SLAT_ENCODER_ARGS: dict[str, Any] = {
    "resolution": STRUCTURE,
    "in_channels": 256,
    "model_channels": 96,
    "latent_channels": LATENT,
    "num_blocks": 2,
    "num_heads": 3,
    "mlp_ratio": 4,
    "window_size": 8,
}
MESH_DECODER_ARGS: dict[str, Any] = {
    "resolution": STRUCTURE,
    "model_channels": 128,
    "latent_channels": LATENT,
    "num_blocks": 3,
    "num_heads": 4,
    "mlp_ratio": 4,
    "window_size": 8,
    "num_groups": 8,
}
SLAT_FLOW_ARGS: dict[str, Any] = {
    "resolution": STRUCTURE,
    "in_channels": LATENT,
    "out_channels": LATENT,
    "model_channels": 128,
    "cond_channels": CONDITION_DIM,
    "num_blocks": 4,
    "num_heads": 4,
    "mlp_ratio": 3,
    "patch_size": 2,
    "num_io_res_blocks": 2,
    "io_block_channels": [32],
    "qk_rms_norm": True,
}
