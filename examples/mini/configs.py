"""Sizes of the mini TRELLIS: what generates is in the plugin, what only trains is here."""

from __future__ import annotations

from typing import Any

from modalign_plugins.generators.trellis.sizes import MINI_MODELS

STRUCTURE_FLOW_ARGS = MINI_MODELS["sparse_structure_flow_model"].args
DECODER_ARGS = MINI_MODELS["sparse_structure_decoder"].args
SLAT_FLOW_ARGS = MINI_MODELS["slat_flow_model"].args
MESH_DECODER_ARGS = MINI_MODELS["slat_decoder_mesh"].args
GAUSSIAN_DECODER_ARGS = MINI_MODELS["slat_decoder_gs"].args

STRUCTURE: int = MESH_DECODER_ARGS["resolution"]  # cells of the occupancy grid
LATENT: int = MESH_DECODER_ARGS["latent_channels"]

ENCODER_ARGS: dict[str, Any] = {
    "in_channels": 1,
    "latent_channels": LATENT,
    "num_res_blocks": 1,
    "num_res_blocks_middle": 1,
    "channels": [16, 32, 64],
}
SLAT_ENCODER_ARGS: dict[str, Any] = {
    "resolution": STRUCTURE,
    "in_channels": 256,  # distance and colour at 4^3 points of a voxel
    "model_channels": 96,
    "latent_channels": LATENT,
    "num_blocks": 2,
    "num_heads": 3,
    "mlp_ratio": 4,
    "window_size": 8,
}
