"""CLIP's text tower as a target encoder: the tokens that TRELLIS's text pipelines read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from modalign_plugins.weights import sources
from torch import Tensor

from modalign import EncoderSpec, TokenGroup, TokenStream, TokenStreamSpec, hookimpl

NAME = "clip-text-vitl14"
REPOSITORY = "openai/clip-vit-large-patch14"
WEIGHTS = "model.safetensors"
TOWER = "text_model."  # how its names begin in that file; the rest is the vision tower
POSITIONS = 77
# Fields of transformers' config. Source: config.json of the repository.
SIZES: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "max_position_embeddings": POSITIONS,
    "hidden_act": "quick_gelu",
    "vocab_size": 49408,
}
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def stream_of(sizes: Mapping[str, Any]) -> TokenStreamSpec:
    """The stream of a tower: a token per position, after its own final norm."""
    positions = sizes["max_position_embeddings"]
    return TokenStreamSpec(
        space=f"{NAME}/affine-layernorm@{positions}",
        groups=(TokenGroup(name="tokens", shape=(positions,), dim=sizes["hidden_size"]),),
    )


@cache
def tokenizer() -> Any:
    """OpenAI's byte pairs as transformers applies them; open_clip brings the table."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    table = SimpleTokenizer()
    words = list(table.encoder)[:-2] + [BEGIN, END]  # open_clip spells the last two otherwise
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=list(table.bpe_ranks)
    )


class ClipTextEncoder:
    """CLIP's text tower: `last_hidden_state` of a text, padded to its full length.

    Attention is causal, and padding is attended to like words, as the tower was trained.
    """

    def __init__(
        self,
        sizes: Mapping[str, Any] = SIZES,
        *,
        tensors: Mapping[str, Tensor] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`sizes` are fields of transformers' config; `tensors` None draws random weights.

        `tensors` carry the names of the published file; others than the text tower's are ignored.

        Raises:
            WeightsError: `tensors` do not fit `sizes`.
        """
        from transformers import CLIPTextConfig, CLIPTextModel

        self.stream = stream_of(sizes)
        self.device = torch.device(device)
        named = None
        if tensors is not None:
            own = {k.removeprefix(TOWER): x for k, x in tensors.items() if k.startswith(TOWER)}
            named = {k: x for k, x in own.items() if not k.endswith("position_ids")}
        self.model = sources.load_frozen(
            CLIPTextModel,
            CLIPTextConfig(**sizes),
            named,
            owner=NAME,
            device=device,
            dtype=dtype,
        )

    def prepare(self, images: Sequence[str]) -> Tensor:
        """Word numbers (B, K) of texts; what does not fit is cut off, as the reference does."""
        numbers = tokenizer()(
            list(images),
            max_length=self.stream.num_tokens,
            padding="max_length",
            truncation=True,
        )
        return torch.tensor(numbers["input_ids"])

    @torch.no_grad()
    def encode(self, batch: Tensor) -> TokenStream:
        """The stream of word numbers (B, K), on the encoder's device and in its dtype."""
        hidden = self.model(input_ids=batch.to(self.device)).last_hidden_state
        return self.stream.split(hidden)


def _build(
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ClipTextEncoder:
    tensors = None
    if weights != "random":
        path = Path(weights)
        if weights == "pretrained":
            path = sources.downloaded(NAME, REPOSITORY, [WEIGHTS])
        tensors = sources.read_tensors(path, NAME, lambda name: name.startswith(TOWER))
    return ClipTextEncoder(tensors=tensors, device=device, dtype=dtype)


@hookimpl
def modalign_encoders() -> list[EncoderSpec]:
    """The text tower of OpenAI's ViT-L/14."""
    return [
        EncoderSpec(
            name=NAME,
            summary="OpenAI CLIP ViT-L/14, its text tower: what TRELLIS reads texts through",
            build=_build,
            stream=stream_of(SIZES),
            modality="text",
            requires=("transformers", "open_clip"),
            preprocessing=f"{POSITIONS} positions: OpenAI's byte pairs, cut or padded to the full "
            "length",
            source=f"{REPOSITORY} (arXiv:2103.00020)",
            license="MIT",
        )
    ]
