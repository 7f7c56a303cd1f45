"""What describes one size of a Qwen-VL model, so that it is built without a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .qwen_vl_prompts import PictureSize, TokenIds

RESERVED = 65  # [IMG] and 64 soft tokens: the released GAP3D cuts prompts at 512 - 65


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """One size: fields of transformers' configs, and how prompts and pictures are read.

    `family` begins the names of transformers' classes. `special_ids` follow SPECIAL_TOKENS.
    """

    name: str
    summary: str
    family: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    tied: bool
    special_ids: tuple[int, ...]
    picture: PictureSize
    max_positions: int
    reserved: int = RESERVED
    repository: str | None = None
    weight_files: tuple[str, ...] = ()
    source: str
    license: str

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of a prompt with its template, so that [IMG] and the soft tokens still fit."""
        return self.max_positions - self.reserved

    @property
    def model_class(self) -> Any:
        """The class of transformers that holds such a model."""
        import transformers

        return getattr(transformers, f"{self.family}ForConditionalGeneration")

    def config(self, ids: TokenIds) -> Any:
        """The config of this size, whose special tokens have these `ids`."""
        import transformers

        return getattr(transformers, f"{self.family}Config")(
            text_config=dict(self.text),
            vision_config=dict(self.vision),
            tie_word_embeddings=self.tied,
            image_token_id=ids.image_pad,
            vision_start_token_id=ids.vision_start,
            vision_end_token_id=ids.vision_end,
        )
