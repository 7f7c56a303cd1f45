"""From prompts to batches for any model of transformers, in the model's own chat form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from modalign import Prompt, PromptError

from .qwen_vl_prompts import GENERATE

TEMPLATE = "the model's own chat form of: " + GENERATE.format(caption="{prompt}")
WORDS = ("input_ids", "attention_mask")
ROWS = (*WORDS, "token_type_ids", "mm_token_type_ids")  # the latter say where pictures are


@dataclass
class ChatPrompts:
    """Batches from prompts; pure and picklable, no model involved.

    A prompt becomes one user's turn and an open answer, or the bare request where the tokenizer
    has no chat template; pictures come before the text. Rows are padded on the left, so that soft
    tokens follow every prompt directly, also for a decoder that counts distances in columns.

    Args:
        tokenizer: of transformers, fast.
        processor: the model's own, for pictures; None if it reads none.
        accepted: names of the tensors that the model takes.
        max_prompt_tokens: bounds the tokens of a prompt with its template, without its pictures'.
    """

    tokenizer: Any
    processor: Any | None
    accepted: frozenset[str]
    max_prompt_tokens: int

    def prepare(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """ "input_ids" and "attention_mask", both (B, P), and whatever else the model takes.

        Raises:
            PromptError: a prompt is empty, too long, holds a control token or an unusable picture.
        """
        if not prompts:
            raise PromptError("no prompt was given")
        rows = [self._encoded(prompt) for prompt in prompts]
        width = max(row["input_ids"].shape[1] for row in rows)
        batch = {}
        for name in WORDS if self.processor is None else ROWS:
            if name in self.accepted:
                fill = self.pad if name == "input_ids" else 0
                batch[name] = torch.cat([_left(row, name, width, fill) for row in rows])
        for name in dict.fromkeys(name for row in rows for name in row if name not in ROWS):
            batch[name] = joined([row[name] for row in rows if name in row])
        return batch

    @cached_property
    def pad(self) -> int:
        """The id that fills rows; attention never reaches it."""
        found: int | None = self.tokenizer.pad_token_id
        return 0 if found is None else found

    @cached_property
    def _control(self) -> list[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        return [token.content for token in added if token.special]

    def _encoded(self, prompt: Prompt) -> Mapping[str, Tensor]:
        rendered = self._rendered(prompt)
        own = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        if len(own) > self.max_prompt_tokens:
            raise self._too_long(prompt.text, len(own))
        # A template writes the special tokens itself.
        options = {"add_special_tokens": self._template is None, "return_tensors": "pt"}
        if prompt.images:
            assert self.processor is not None
            pictures = [image.convert("RGB") for image in prompt.images]
            encoded = self.processor(text=[rendered], images=[pictures], **options)
        else:
            encoded = self.tokenizer([rendered], **options)
        return {
            name: tensor
            for name, tensor in encoded.items()
            if name in self.accepted and isinstance(tensor, Tensor)
        }

    @property
    def _template(self) -> str | None:
        owner = self.tokenizer if self.processor is None else self.processor
        template: str | None = owner.chat_template
        return template

    def _rendered(self, prompt: Prompt) -> str:
        request = GENERATE.format(caption=self._checked(prompt))
        if self._template is None:
            return (
                self.processor.image_token * len(prompt.images) + request
                if prompt.images
                else request
            )
        asked: Any = request
        owner = self.tokenizer
        if self.processor is not None:
            owner = self.processor
            asked = [{"type": "image"}] * len(prompt.images) + [{"type": "text", "text": request}]
        rendered: str = owner.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, tokenize=False
        )
        return rendered

    def _checked(self, prompt: Prompt) -> str:
        if not prompt.text.strip():
            raise PromptError("the prompt is empty; describe what to make")
        for token in self._control:
            if token in prompt.text:
                raise PromptError(
                    f"the prompt contains {token!r}, a control token of the model; remove it"
                )
        if prompt.images and self.processor is None:
            raise PromptError("the prompt has a picture, but this language model reads text only")
        for image in prompt.images:
            if not hasattr(image, "convert"):
                raise PromptError(
                    f"a prompt's picture must be a PIL image, got {type(image).__name__}"
                )
        return prompt.text

    def _too_long(self, text: str, count: int) -> PromptError:
        excess = count - self.max_prompt_tokens
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        tail = self.tokenizer.decode(ids[-excess:]).strip()
        shown = tail if len(tail) <= 60 else tail[:57] + "..."
        return PromptError(
            f"the prompt takes {count} tokens, {excess} more than the {self.max_prompt_tokens} "
            f"that are read; shorten it by its end, from {shown!r} on"
        )


def _left(row: Mapping[str, Tensor], name: str, width: int, fill: int) -> Tensor:
    """The row's tensor (1, P) filled on the left to `width`; zeros if it has none of this name."""
    given = row.get(name, torch.zeros_like(row["input_ids"]))
    return torch.nn.functional.pad(given, (width - given.shape[1], 0), value=fill)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Pictures' tensors along their first axis, others filled with zeros to the largest.

    Where a model takes several tiles or patches per picture, it drops those that are all zero, or
    counts them by the picture's size.
    """
    shape = [
        max(lengths) for lengths in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)
    ]
    filled = []
    for tensor in tensors:
        room = [length - own for length, own in zip(shape, tensor.shape[1:], strict=True)]
        sides = [side for extra in reversed(room) for side in (0, extra)]
        filled.append(torch.nn.functional.pad(tensor, sides))
    return torch.cat(filled)
