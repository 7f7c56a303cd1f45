"""From prompts to batches of ids and pixels, as Qwen-VL models read them. No model involved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from modalign_plugins.pictures import centre_square, normalised
from torch import Tensor

from modalign import Prompt, PromptError, WeightsError

if TYPE_CHECKING:
    from PIL.Image import Image
    from tokenizers import Tokenizer

Overlong = Literal["refuse", "cut"]

Channels = tuple[float, float, float]

# OpenAI CLIP's statistics, which Qwen2.5-VL's image processor uses.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# The three turns, each tokenised by itself: facts of the released GAP3D, section 2. The empty
# assistant turn is closed before [IMG].
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
USER = "<|im_start|>user\n{request}<|im_end|>\n"
OPEN_ASSISTANT = "<|im_start|>assistant\n"
ASSISTANT = OPEN_ASSISTANT + "<|im_end|>\n"
GENERATE = "Please generate image based on the following caption: {caption}"
REPLICATE = "Create a precise replica of: {pictures}\nbut: {caption}"

START = "[IMG]"
TEMPLATE = SYSTEM + USER.format(request=GENERATE.format(caption="{prompt}")) + ASSISTANT + START
PAD, VISION_START, VISION_END, IMAGE_PAD = (
    "<|endoftext|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)
_PLACED = (PAD, VISION_START, VISION_END, IMAGE_PAD)
SPECIAL_TOKENS = (
    PAD,
    "<|im_start|>",
    "<|im_end|>",
    VISION_START,
    VISION_END,
    IMAGE_PAD,
    START,
    "[/IMG]",
    "<image>",
)


@dataclass(frozen=True)
class TokenIds:
    """Ids that the adapter itself places; `start` is [IMG], after which the soft tokens follow."""

    pad: int
    start: int
    image_pad: int
    vision_start: int
    vision_end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """The ids in `tokenizer`; where it has no [IMG], that is the first id after its last.

        Raises:
            WeightsError: it lacks a special token of Qwen-VL.
        """
        found = {token: tokenizer.token_to_id(token) for token in (*_PLACED, START)}
        missing = [token for token in _PLACED if found[token] is None]
        if missing:
            raise WeightsError(f"the tokenizer lacks {', '.join(missing)}; is it a Qwen-VL's?")
        if found[START] is None:
            found[START] = tokenizer.get_vocab_size(with_added_tokens=True)
        placed = {token: index for token, index in found.items() if index is not None}
        return cls(
            pad=placed[PAD],
            start=placed[START],
            image_pad=placed[IMAGE_PAD],
            vision_start=placed[VISION_START],
            vision_end=placed[VISION_END],
        )


@dataclass(frozen=True)
class PictureSize:
    """How a picture becomes patches: a square of `side` pixels, merged `merge` x `merge`."""

    side: int
    patch: int = 14
    merge: int = 2
    frames: int = 2
    mean: Channels = CLIP_MEAN
    std: Channels = CLIP_STD

    @property
    def num_tokens(self) -> int:
        """Tokens that one picture takes in a prompt."""
        return (self.side // self.patch // self.merge) ** 2


@dataclass
class QwenVLPrompts:
    """Batches from prompts. Pure and picklable: workers need this, not the model.

    `max_prompt_tokens` bounds the tokens of a prompt with its template, without its pictures'.
    `overlong` says what happens beyond: "refuse" raises, "cut" drops ids from the right, the
    template's end included, as the released GAP3D does. Prompts with pictures are never cut.
    """

    tokenizer: Tokenizer
    ids: TokenIds
    picture: PictureSize
    max_prompt_tokens: int
    overlong: Overlong = "refuse"

    def prepare(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Prompts with [IMG], right-padded: "input_ids" and "attention_mask", both (B, P).

        With pictures also "pixel_values" (patches, values) and "image_grid_thw" (pictures, 3).

        Raises:
            PromptError: a prompt is empty, too long, holds a control token or an unusable picture.
        """
        if not prompts:
            raise PromptError("no prompt was given")
        rows = [self.row(prompt) for prompt in prompts]
        return self.batch(rows, [image for prompt in prompts for image in prompt.images])

    def row(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt in its template, then [IMG]; cut or refused if too long."""
        text = self._checked(prompt.text)
        if prompt.images:
            for image in prompt.images:
                if not hasattr(image, "convert"):
                    raise PromptError(
                        f"a prompt's picture must be a PIL image, got {type(image).__name__}"
                    )
            text = REPLICATE.format(pictures=self._pictures(len(prompt.images)), caption=text)
        request = GENERATE.format(caption=text)
        ids = [*self._system, *self._ids(USER.format(request=request)), *self._closing]
        limit = self.max_prompt_tokens + len(prompt.images) * (self.picture.num_tokens + 2)
        if len(ids) > limit and (self.overlong == "refuse" or prompt.images):
            raise self._too_long(ids, limit)
        return started(ids, limit, self.ids.start)

    def chat(
        self,
        questions: Sequence[str],
        images: Sequence[Image | None] | None = None,
        answers: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """A batch in Qwen's chat form: for language-model training, or to be answered.

        With `answers` each row ends with its answer, and "labels" (B, P) is the answer with its
        end token, -100 elsewhere; without, each row ends with an open assistant turn.
        """
        pictures = list(images) if images is not None else [None] * len(questions)
        rows, labels = [], []
        for k, (question, image) in enumerate(zip(questions, pictures, strict=True)):
            seen = self._pictures(1) if image is not None else ""
            request = USER.format(request=seen + self._checked(question))
            asked = [*self._system, *self._ids(request), *self._opening]
            answer = [] if answers is None else self._ids(f"{answers[k]}<|im_end|>\n")
            rows.append(asked + answer)
            labels.append([-100] * len(asked) + answer)
        batch = self.batch(rows, [image for image in pictures if image is not None])
        if answers is not None:
            batch["labels"] = pad_right(labels, -100)
        return batch

    def batch(self, rows: Sequence[Sequence[int]], images: Sequence[Image]) -> dict[str, Tensor]:
        """Rows of ids, right-padded, with the patches of all their pictures in order."""
        batch = {
            "input_ids": pad_right(rows, self.ids.pad),
            "attention_mask": pad_right([[1] * len(row) for row in rows], 0),
        }
        if images:
            grid = self.picture.side // self.picture.patch
            patches = [self._patches(image) for image in images]
            batch["pixel_values"] = torch.from_numpy(np.concatenate(patches))
            batch["image_grid_thw"] = torch.tensor([[1, grid, grid]] * len(images))
        return batch

    @cached_property
    def _system(self) -> list[int]:
        return self._ids(SYSTEM)

    @cached_property
    def _closing(self) -> list[int]:
        return self._ids(ASSISTANT)

    @cached_property
    def _opening(self) -> list[int]:
        return self._ids(OPEN_ASSISTANT)

    @cached_property
    def _control(self) -> list[str]:
        added = self.tokenizer.get_added_tokens_decoder().values()
        return [token.content for token in added if token.special]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _pictures(self, count: int) -> str:
        one = VISION_START + IMAGE_PAD * self.picture.num_tokens + VISION_END
        return one * count

    def _checked(self, text: str) -> str:
        if not text.strip():
            raise PromptError("the prompt is empty; describe what to make")
        for token in self._control:
            if token in text:
                raise PromptError(
                    f"the prompt contains {token!r}, a control token of the model; remove it"
                )
        return text

    def _too_long(self, ids: list[int], limit: int) -> PromptError:
        excess, closing = len(ids) - limit, len(self._closing) + 2  # 2: end of the user's turn
        tail = self.tokenizer.decode(ids[-closing - excess : -closing]).strip()
        shown = tail if len(tail) <= 60 else tail[:57] + "..."
        return PromptError(
            f"the prompt takes {len(ids)} tokens, {excess} more than the {limit} that are read; "
            f"shorten it by its end, from {shown!r} on"
        )

    def _patches(self, image: Image) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Patches (rows, channels x frames x patch x patch), the merged ones adjacent."""
        size = self.picture
        pixels = normalised(centre_square(image, size.side), size.mean, size.std)
        cells = size.side // size.patch // size.merge
        split = pixels.reshape(3, cells, size.merge, size.patch, cells, size.merge, size.patch)
        split = split.transpose(1, 4, 2, 5, 0, 3, 6)  # rows, columns, merge, merge, C, patch, patch
        frames = np.repeat(split[:, :, :, :, :, None], size.frames, axis=5)  # a still: all equal
        return frames.reshape((cells * size.merge) ** 2, -1)


def started(ids: Sequence[int], limit: int, start: int) -> list[int]:
    """The first `limit` ids, then [IMG]: how the released GAP3D begins every row."""
    return [*ids[:limit], start]


def pad_right(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows as one tensor (B, longest), filled with `value` on the right."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def byte_tokenizer(special: Mapping[str, int]) -> Tokenizer:
    """An untrained tokenizer: one token per byte, plus `special` tokens at given ids.

    Its byte ids are Qwen's own: both follow the byte order of GPT-2.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = _byte_order()
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, **special}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    return tokenizer


def _byte_order() -> list[str]:
    """The 256 characters that stand for bytes: printable ones first, as in GPT-2's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]
