"""Any text-only causal language model of transformers."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from modalign_plugins.weights import sources

from modalign import VLMSpec, hookimpl

from .any_decoder import AnyDecoder
from .chat_prompts import TEMPLATE, ChatPrompts
from .model_folder import folder_of, frozen_model

NAME = "transformers-lm"


def adapter_of(
    *,
    model: str | None = None,
    max_prompt_tokens: int = 447,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> AnyDecoder:
    """The adapter of `model`, a Hub repository or a folder with its tokenizer.

    `weights` is "pretrained", "random", or a model folder.

    Raises:
        BuildError: no model is named, or it has no causal decoder.
        WeightsError: files are missing, damaged or of another model.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    folder = folder_of(NAME, model, weights)
    tokenizer = sources.described(NAME, folder, AutoTokenizer)
    frozen = frozen_model(
        NAME, folder, MODEL_FOR_CAUSAL_LM_MAPPING, weights=weights, device=device, dtype=dtype
    )
    accepted = frozenset(inspect.signature(frozen.base_model.forward).parameters)
    return AnyDecoder(frozen, ChatPrompts(tokenizer, None, accepted, max_prompt_tokens))


@hookimpl
def modalign_vlms() -> list[VLMSpec]:
    """One entry for all such models."""
    return [
        VLMSpec(
            name=NAME,
            summary="any causal language model of transformers, named in vlm_options; text only",
            build=adapter_of,
            hidden_dim=None,
            max_positions=None,
            accepts_images=False,
            requires=("transformers",),
            source="the Hub repository or folder that vlm_options name as 'model'",
            license="that of the model",
            template=TEMPLATE,
        )
    ]
