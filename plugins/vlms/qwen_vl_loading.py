"""From the sizes of a Qwen-VL model to its adapter and its catalogue entry."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from modalign_plugins.weights import sources

from modalign import VLMSpec

from .qwen_vl import Positions, QwenVL
from .qwen_vl_prompts import (
    SPECIAL_TOKENS,
    TEMPLATE,
    Overlong,
    QwenVLPrompts,
    TokenIds,
    byte_tokenizer,
)
from .qwen_vl_sizes import Sizes


def adapter_of(
    sizes: Sizes,
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    positions: Positions = "reference",
    overlong: Overlong = "refuse",
    token_rows: torch.Tensor | None = None,
) -> QwenVL:
    """The adapter of this size. `weights` is "pretrained", "random", or a model folder.

    `token_rows` (R, C) are rows that a training added to the word table, [IMG] first.

    Raises:
        WeightsError: weights or the tokenizer are missing, damaged or of another model.
    """
    folder = _folder(sizes, weights)
    tokenizer = (
        byte_tokenizer(dict(zip(SPECIAL_TOKENS, sizes.special_ids, strict=True)))
        if folder is None
        else sources.read_tokenizer(folder, sizes.name)
    )
    ids = TokenIds.of(tokenizer)
    model = sources.load_frozen(
        sizes.model_class, sizes.config(ids), folder, owner=sizes.name, device=device, dtype=dtype
    )
    prompts = QwenVLPrompts(
        tokenizer=tokenizer,
        ids=ids,
        picture=sizes.picture,
        max_prompt_tokens=sizes.max_prompt_tokens,
        overlong=overlong,
    )
    start = None if token_rows is None else token_rows[0]
    return QwenVL(model, prompts, positions=positions, start_embedding=start)


def spec_of(sizes: Sizes) -> VLMSpec:
    """The catalogue entry of this size."""
    return VLMSpec(
        name=sizes.name,
        summary=sizes.summary,
        build=partial(adapter_of, sizes),
        hidden_dim=sizes.text["hidden_size"],
        max_positions=sizes.max_positions,
        requires=("transformers",),
        source=sizes.source,
        license=sizes.license,
        template=TEMPLATE,
    )


def _folder(sizes: Sizes, weights: str | Path) -> Path | None:
    if weights == "random":
        return None
    if weights != "pretrained":
        folder = Path(weights)
    elif sizes.repository:
        files = ["tokenizer.json", *sizes.weight_files]
        folder = sources.downloaded(sizes.name, sizes.repository, files)
    else:
        folder = sources.shipped(sizes.name)
    sources.safetensors_in(folder, sizes.name)
    return folder
