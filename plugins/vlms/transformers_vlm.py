"""Any image-text-to-text model of transformers with a causal decoder."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from modalign_plugins.weights import sources

from modalign import VLMSpec, WeightsError, hookimpl

from .any_decoder import AnyDecoder
from .chat_prompts import TEMPLATE, ChatPrompts
from .model_folder import folder_of, frozen_model

NAME = "transformers-vlm"


def adapter_of(
    *,
    model: str | None = None,
    max_prompt_tokens: int = 447,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> AnyDecoder:
    """The adapter of `model`, a Hub repository or a folder with its processor.

    `weights` is "pretrained", "random", or a model folder.

    Raises:
        BuildError: no model is named, it has no causal decoder, or its processor needs a library.
        WeightsError: files are missing, damaged or of another model.
    """
    from transformers import AutoProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    folder = folder_of(NAME, model, weights)
    processor = sources.described(NAME, folder, AutoProcessor)
    if not hasattr(processor, "image_processor"):  # transformers then returns the tokenizer
        raise WeightsError(
            f"{NAME!r} finds no processor of pictures in {folder}; for a model of text alone take "
            "'transformers-lm'"
        )
    frozen = frozen_model(
        NAME,
        folder,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        weights=weights,
        device=device,
        dtype=dtype,
    )
    accepted = frozenset(inspect.signature(frozen.base_model.forward).parameters)
    prompts = ChatPrompts(processor.tokenizer, processor, accepted, max_prompt_tokens)
    return AnyDecoder(frozen, prompts)


@hookimpl
def modalign_vlms() -> list[VLMSpec]:
    """One entry for all such models."""
    return [
        VLMSpec(
            name=NAME,
            summary="any image-text-to-text model of transformers, named in vlm_options",
            build=adapter_of,
            hidden_dim=None,
            max_positions=None,
            requires=("transformers",),
            source="the Hub repository or folder that vlm_options name as 'model'",
            license="that of the model",
            template=TEMPLATE,
        )
    ]
