"""Folders of tiny random models, each with its own tokenizer and processor, made offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from modalign_plugins.vlms.qwen_vl_prompts import byte_tokenizer

TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}:"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}</s>assistant:{% endif %}"
)
SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "vision_use_head": False,
}
TEXT = {
    "vocab_size": 280,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
}
GEMMA = {**TEXT, "head_dim": 16, "query_pre_attn_scalar": 16}
SQUARE = {"height": 28, "width": 28}


def fast_tokenizer(*special: str, **named: str) -> Any:
    """One token per byte, <pad> <s> </s> at 256 to 258, then `special` ones and those `named`."""
    tokens = ["<pad>", "<s>", "</s>", *special, *named.values()]
    ids = {token: 256 + index for index, token in enumerate(tokens)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(ids),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=named,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def idefics3() -> tuple[Any, Any]:
    tokenizer = fast_tokenizer(
        "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"
    )
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", **TEXT},
        vision_config={k: v for k, v in SIGLIP.items() if k != "vision_use_head"},
        image_token_id=image_id,
        scale_factor=2,
        pad_token_id=256,
    )
    processor = transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessor(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=True
        ),
        tokenizer,
        image_seq_len=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    tokenizer = fast_tokenizer("<image>", "<video>")
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={"model_type": "siglip_vision_model", **SIGLIP},
        image_token_index=259,
        video_token_index=260,
        image_grid_pinpoints=[[28, 56], [56, 28]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(
            size=SQUARE, crop_size=SQUARE, image_grid_pinpoints=[[28, 56], [56, 28]]
        ),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def paligemma() -> tuple[Any, Any]:
    """A prompt that sees itself both ways, positions that begin at 1, no chat template."""
    tokenizer = fast_tokenizer("<image>")
    config = transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma2", **GEMMA, "sliding_window": 16},
        vision_config={"model_type": "siglip_vision_model", **SIGLIP, "projection_dim": 48},
        image_token_index=259,
        projection_dim=48,
        hidden_size=48,
    )
    images = transformers.SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = 4
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    return transformers.PaliGemmaForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    """A sliding window shorter than the prompt; pictures see themselves both ways."""
    tokenizer = fast_tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    config = transformers.Gemma3Config(
        text_config={
            **GEMMA,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        vision_config=SIGLIP,
        mm_tokens_per_image=4,
        boi_token_index=259,
        eoi_token_index=260,
        image_token_index=261,
        image_token_id=261,
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size=SQUARE, do_pan_and_scan=False),
        tokenizer,
        image_seq_length=4,
        chat_template=TEMPLATE.replace("IMAGE", "<start_of_image>"),
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    """Pictures in several tiles."""
    tokenizer = fast_tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [28, 28],
            "patch_size": [14, 14],
        },
        image_token_id=261,
        image_seq_length=1,
        downsample_ratio=0.5,
    )
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=3),
        tokenizer,
        transformers.InternVLVideoProcessor(size=SQUARE),
        image_seq_length=1,
        chat_template=TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>"),
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def qwen_vl(family: str, text: dict[str, Any], vision: dict[str, Any], patch: int) -> Any:
    """Three rotary axes, which the model numbers itself; a processor of Qwen's."""
    tokenizer = fast_tokenizer(
        "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
    )
    config = getattr(transformers, f"{family}Config")(
        text_config={**TEXT, **text},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 48,
            **vision,
        },
        vision_start_token_id=259,
        vision_end_token_id=260,
        image_token_id=261,
        video_token_id=262,
    )
    side = 2 * patch
    own = "Qwen2_5_VL" if family == "Qwen2_5_VL" else "Qwen3VL"
    processor = getattr(transformers, f"{own}Processor")(
        transformers.Qwen2VLImageProcessor(
            size={"shortest_edge": side * side, "longest_edge": 4 * side * side}, patch_size=patch
        ),
        tokenizer,
        getattr(
            transformers, "Qwen2VLVideoProcessor" if patch == 14 else "Qwen3VLVideoProcessor"
        )(),
        chat_template=TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return getattr(transformers, f"{family}ForConditionalGeneration")(config), processor


def rotary(*sections: int, **fields: Any) -> dict[str, Any]:
    """Rotary parameters whose axes take these many pairs."""
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [*sections], **fields}


def qwen2_5_vl() -> tuple[Any, Any]:
    text = {"rope_parameters": rotary(2, 2, 2)}
    return qwen_vl("Qwen2_5_VL", text, {"window_size": 56, "fullatt_block_indexes": [1]}, 14)


def qwen3_vl() -> tuple[Any, Any]:
    """Visual features enter the decoder's first layers too."""
    text = {"head_dim": 16, "rope_parameters": rotary(4, 2, 2, mrope_interleaved=True)}
    vision = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return qwen_vl("Qwen3VL", text, vision, 16)


def qwen3_5() -> tuple[Any, Any]:
    """Linear attention behind pictures."""
    axes = rotary(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5)
    return qwen_vl(
        "Qwen3_5", {**LINEAR, "rope_parameters": axes}, {"num_position_embeddings": 16}, 16
    )


def language_model(name: str) -> tuple[Any, Any]:
    """One of `LMS`, and its tokenizer with a chat template."""
    tokenizer = fast_tokenizer()
    tokenizer.chat_template = TEMPLATE
    config, model, fields = LMS[name]
    return getattr(transformers, model)(getattr(transformers, config)(**fields)), tokenizer


WINDOW = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
VLMS = {
    "idefics3": idefics3,
    "llava_onevision": llava_onevision,
    "paligemma": paligemma,
    "gemma3": gemma3,
    "internvl": internvl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_5": qwen3_5,
}
LMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", TEXT),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", TEXT),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**TEXT, "head_dim": 16}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**GEMMA, **WINDOW}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**GEMMA, **WINDOW}),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": 280,
            "n_embd": 48,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 1024,
            "bos_token_id": 257,
            "eos_token_id": 258,
        },
    ),
    "qwen3_5": (
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        {**TEXT, **LINEAR},
    ),
}


def saved(made: tuple[Any, Any], folder: Path) -> Path:
    """`folder` with the model, every weight moved so that no zero or one hides a path."""
    model, descriptions = made
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=draw), alpha=0.05)
    model.save_pretrained(folder)
    descriptions.save_pretrained(folder)
    return folder
