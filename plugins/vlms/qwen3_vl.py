"""Qwen3-VL, whose vision tower also feeds the decoder's first layers: 2B, 4B and 8B."""

from __future__ import annotations

from typing import Any

from modalign import VLMSpec, hookimpl

from .qwen_vl_loading import spec_of
from .qwen_vl_prompts import PictureSize
from .qwen_vl_sizes import Sizes

# Qwen3's tokenizer has four tokens more than Qwen2.5's before the first free id.
QWEN3_IDS = (151643, 151644, 151645, 151652, 151653, 151655, 151669, 151670, 151671)
HALF = (0.5, 0.5, 0.5)

VISION_SMALL = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "deepstack_visual_indexes": [5, 11, 17],
}
VISION_LARGE = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "deepstack_visual_indexes": [8, 16, 24],
}


def _sizes(size: str, text: dict[str, Any], vision: dict[str, Any], *, tied: bool) -> Sizes:
    """One published size; a picture of 512 x 512 pixels takes 256 tokens, as in GAP3D."""
    repository = f"Qwen/Qwen3-VL-{size}-Instruct"
    return Sizes(
        name=f"qwen3-vl-{size.lower()}",
        summary=f"Qwen3-VL {size} Instruct",
        family="Qwen3VL",
        text={
            "vocab_size": 151936,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
            **text,
        },
        vision={**vision, "out_hidden_size": text["hidden_size"]},
        tied=tied,
        special_ids=QWEN3_IDS,
        picture=PictureSize(side=512, patch=16, mean=HALF, std=HALF),
        max_positions=512,
        repository=repository,
        weight_files=("model*.safetensors*",),
        source=f"{repository} (arXiv:2511.21631)",
        license="Apache-2.0",
    )


QWEN3_2B = _sizes(
    "2B",
    {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    VISION_SMALL,
    tied=True,
)
QWEN3_4B = _sizes(
    "4B",
    {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
    VISION_SMALL,
    tied=True,
)
QWEN3_8B = _sizes(
    "8B",
    {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
    VISION_LARGE,
    tied=False,
)


@hookimpl
def modalign_vlms() -> list[VLMSpec]:
    """Qwen3-VL in three published sizes."""
    return [spec_of(sizes) for sizes in (QWEN3_2B, QWEN3_4B, QWEN3_8B)]
