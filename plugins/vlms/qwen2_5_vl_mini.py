"""A fresh mini Qwen2.5-VL with a tokenizer of its own, to be trained and shipped."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from modalign_plugins.weights import sources

from .qwen2_5_vl_sizes import MINI
from .qwen_vl import Positions, QwenVL
from .qwen_vl_prompts import (
    GENERATE,
    REPLICATE,
    SPECIAL_TOKENS,
    QwenVLPrompts,
    TokenIds,
)
from .qwen_vl_sizes import Sizes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Qwen's own pattern: contractions, words with one leading mark, single digits, marks, spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens, Qwen's special tokens at the end.

    The prompt templates are trained on along with `texts`, so that they take few tokens.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    templates = [
        "system\nYou are a helpful assistant.",
        "user\n" + GENERATE.format(caption=REPLICATE.format(pictures="", caption="")),
        "assistant\n",
    ]
    tokenizer.train_from_iterator([*templates * 2, *texts], trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def fresh(
    texts: Iterable[str],
    *,
    sizes: Sizes = MINI,
    positions: Positions = "reference",
    device: str | torch.device = "cpu",
) -> QwenVL:
    """An adapter around an untrained model, its tokenizer trained on `texts`.

    `adapter.model` is transformers' class with all parameters trainable; train it on
    `adapter.prompts.chat(questions, images, answers)` with `position_ids=adapter.places(batch)`,
    then `save` it and build it anew: [IMG]'s embedding is computed once per adapter. Initial
    weights come from the global generator.
    """
    tokenizer = train_tokenizer(texts, sizes.text["vocab_size"])
    ids = TokenIds.of(tokenizer)
    model = sources.load_frozen(
        sizes.model_class,
        sizes.config(ids),
        None,
        owner=sizes.name,
        device=device,
        dtype=torch.float32,
    )
    model.requires_grad_(True)
    prompts = QwenVLPrompts(
        tokenizer=tokenizer,
        ids=ids,
        picture=sizes.picture,
        max_prompt_tokens=sizes.max_prompt_tokens,
    )
    return QwenVL(model, prompts, positions=positions)


def save(adapter: QwenVL, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write config.json, model.safetensors and tokenizer.json, which `weights=folder` reads."""
    from safetensors.torch import save_file

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Any] = sources.file_tensors(adapter.model)
    written = {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}
    save_file(written, target / sources.WEIGHTS, metadata={"format": "pt"})
    adapter.model.config.save_pretrained(target)
    adapter.prompts.tokenizer.save(str(target / "tokenizer.json"))
