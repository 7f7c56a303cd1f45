"""Qwen2.5-VL's configurations, written out: full-size networks are built without a network."""

from __future__ import annotations

from typing import Any

from .qwen_vl_prompts import PictureSize
from .qwen_vl_sizes import Sizes

FAMILY = "Qwen2_5_VL"

# Qwen's own ids, in the order of SPECIAL_TOKENS; the last three follow the published vocabulary.
QWEN_IDS = (151643, 151644, 151645, 151652, 151653, 151655, 151665, 151666, 151667)


def _text(section: list[int], **fields: Any) -> dict[str, Any]:
    rotary = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}
    return {"rms_norm_eps": 1e-6, "rope_parameters": rotary, **fields}


VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}
QWEN_3B = Sizes(
    name="qwen2.5-vl-3b",
    summary="Qwen2.5-VL 3B Instruct: the vision-language model of GAP3D and BLIP3-o",
    family=FAMILY,
    text=_text(
        [16, 24, 24],
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        max_position_embeddings=128000,
    ),
    vision={**VISION, "out_hidden_size": 2048},
    tied=True,
    special_ids=QWEN_IDS,
    picture=PictureSize(side=448),
    max_positions=512,
    repository="Qwen/Qwen2.5-VL-3B-Instruct",
    weight_files=("model.safetensors.index.json", "model-*-of-*.safetensors"),
    source="Qwen/Qwen2.5-VL-3B-Instruct (arXiv:2502.13923)",
    license="Qwen Research License",
)
QWEN_7B = Sizes(
    name="qwen2.5-vl-7b",
    summary="Qwen2.5-VL 7B Instruct: the vision-language model of the larger BLIP3-o",
    family=FAMILY,
    text=_text(
        [16, 24, 24],
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=128000,
    ),
    vision={**VISION, "out_hidden_size": 3584},
    tied=False,
    special_ids=QWEN_IDS,
    picture=PictureSize(side=448),
    max_positions=512,
    repository="Qwen/Qwen2.5-VL-7B-Instruct",
    weight_files=("model.safetensors.index.json", "model-*-of-*.safetensors"),
    source="Qwen/Qwen2.5-VL-7B-Instruct (arXiv:2502.13923)",
    license="Apache-2.0",
)
MINI = Sizes(
    name="qwen2.5-vl-mini",
    summary="the same network with 3 M parameters, trained on the toy world",
    family=FAMILY,
    text=_text(
        [4, 6, 6],
        vocab_size=1024,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
    ),
    vision={
        "depth": 6,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_heads": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1, 3, 5],
        "tokens_per_second": 2,
        "out_hidden_size": 192,
    },
    tied=True,
    special_ids=tuple(range(256, 265)),
    picture=PictureSize(side=112),
    max_positions=256,
    reserved=33,
    source="ships with modalign; trained by examples/mini",
    license="Apache-2.0",
)
