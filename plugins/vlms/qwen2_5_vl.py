"""Qwen2.5-VL, frozen, as the model that soft tokens read from: 3B, 7B, and the mini that ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from modalign_plugins.weights import sources
from torch import Tensor

from modalign import Prompt, VLMOutput, VLMSpec, hookimpl

from .qwen2_5_vl_prompts import (
    SPECIAL_TOKENS,
    Overlong,
    PictureSize,
    Qwen25VLPrompts,
    TokenIds,
    byte_tokenizer,
)
from .qwen2_5_vl_sizes import MINI, QWEN_3B, QWEN_7B, Sizes

if TYPE_CHECKING:
    from PIL.Image import Image

Positions = Literal["reference", "native"]


class Qwen25VL:
    """Reads soft tokens that follow a prompt and [IMG]; nothing of the model is trained.

    A row is: prompt, [IMG], soft tokens, padding; attention is causal. `positions="reference"`
    numbers all tokens 0..L-1 on the three rotary axes, pictures too, as the released GAP3D does;
    "native" gives pictures Qwen's own places. Source: facts of the released GAP3D, section 2.
    """

    def __init__(
        self,
        model: Any,
        prompts: Qwen25VLPrompts,
        *,
        positions: Positions = "reference",
        start_embedding: Tensor | None = None,
    ) -> None:
        """`model` is transformers' Qwen2_5_VLForConditionalGeneration.

        `start_embedding` (C,) is what [IMG] looks like; None takes the mean of all words that
        come before it in the vocabulary, as the released GAP3D does.
        """
        if positions not in get_args(Positions):
            raise ValueError(f"positions must be one of {get_args(Positions)}, got {positions!r}")
        self.model = model
        self.hidden_dim: int = model.config.text_config.hidden_size
        self.prompts = prompts
        self.positions = positions
        self._start_embedding = start_embedding

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = self.model.device
        return device

    @cached_property
    def start_embedding(self) -> Tensor:
        """The embedding (C,) of [IMG]."""
        table: Tensor = self._text.embed_tokens.weight.detach()
        if self._start_embedding is not None:
            return self._start_embedding.to(table)
        return table[: self.prompts.ids.start].float().mean(0).to(table.dtype)

    def prepare(
        self, prompts: Sequence[Prompt], answers: Sequence[str | None] | None = None
    ) -> dict[str, Tensor]:
        """Prompts in the recipe's template, ending in [IMG]; see `Qwen25VLPrompts.prepare`.

        Raises:
            PromptError: a prompt is empty, too long, holds a control token or an unusable picture.
            ValueError: answers were given; this adapter has no language loss.
        """
        if answers is not None and any(answer is not None for answer in answers):
            raise ValueError("qwen2.5-vl adapters have no language loss; leave answers out")
        return self.prompts.prepare(prompts)

    def read(self, batch: Mapping[str, Tensor], soft_tokens: Tensor) -> VLMOutput:
        """Hidden states (B, S, C), after the last norm, at soft tokens (1, S, C).

        Prompts run once, without autograd, and leave keys and values; only the soft positions
        are differentiated. Exact: nothing before a soft token depends on it.
        """
        self._check(soft_tokens)
        num_soft = soft_tokens.shape[1]
        # Counted where `prepare` left the ids, on the CPU: a device need not be waited for.
        shared = num_shared(batch["input_ids"], self.prompts.ids.image_pad)
        batch, mask = self._moved(batch)
        places = self.places(batch)  # (3, B, P)
        soft = soft_tokens.to(self.model.dtype).expand(len(mask), -1, -1)
        seen = torch.cat([mask, mask.new_ones(len(mask), num_soft)], dim=1)
        output = self._text(
            inputs_embeds=soft,
            position_ids=self._soft_places(places, mask, num_soft),
            attention_mask=seen,
            past_key_values=self._prompt_cache(batch, places, shared),
        )
        return VLMOutput(output.last_hidden_state)

    def read_plain(self, batch: Mapping[str, Tensor], soft_tokens: Tensor) -> VLMOutput:
        """The same as `read` in one differentiated pass over whole rows: slower, and simpler."""
        output, index = self.whole(batch, soft_tokens)
        hidden = output.last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        return VLMOutput(hidden[rows, index])

    def whole(
        self,
        batch: Mapping[str, Tensor],
        soft_tokens: Tensor,
        *,
        places: Tensor | None = None,
        **options: Any,
    ) -> tuple[Any, Tensor]:
        """The language model's output over whole rows (B, P + S, C), and the soft index (B, S).

        `places` (3, B, P + S) replaces the rotary positions; `options` go to the model.
        """
        batch, mask = self._moved(batch)
        self._check(soft_tokens)
        embedded, index = self.whole_embeddings(batch, soft_tokens)
        total = torch.arange(embedded.shape[1], device=self.device)
        if places is None:
            prefix = self.places(batch)
            soft = self._soft_places(prefix, mask, soft_tokens.shape[1])
            places = total.expand(3, len(mask), -1).clone()
            places[:, :, : mask.shape[1]] = prefix
            places = places.scatter(2, index.expand(3, -1, -1), soft)
        seen = (total <= index[:, -1:]).long()
        output = self._text(
            inputs_embeds=embedded, position_ids=places, attention_mask=seen, **options
        )
        return output, index

    def whole_embeddings(
        self, batch: Mapping[str, Tensor], soft_tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embedded rows (B, P + S, C): prompt, [IMG], soft tokens, padding; and the soft index."""
        batch, mask = self._moved(batch)
        num_soft = soft_tokens.shape[1]
        index = soft_index(mask, num_soft)  # (B, S)
        ids = batch["input_ids"]
        padding = ids.new_full((len(ids), num_soft), self.prompts.ids.pad)
        embedded = self.embed({**batch, "input_ids": torch.cat([ids, padding], dim=1)})
        soft = soft_tokens.to(embedded.dtype).expand(len(ids), -1, -1)
        where = index[:, :, None].expand(-1, -1, embedded.shape[-1])
        return embedded.scatter(1, where, soft), index

    @torch.no_grad()
    def embed(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Embeddings (B, P, C) of ids, of [IMG], and of the pictures' patches."""
        ids = batch["input_ids"].to(self.device)
        embedded: Tensor = self._text.embed_tokens(ids)
        is_start = (ids == self.prompts.ids.start)[:, :, None]
        embedded = torch.where(is_start, self.start_embedding, embedded)
        if "pixel_values" in batch:
            features = self.picture_features(batch)
            is_picture = (ids == self.prompts.ids.image_pad)[:, :, None]
            embedded = embedded.masked_scatter(is_picture, features.to(embedded.dtype))
        return embedded

    @torch.no_grad()
    def picture_features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Merged patches (patches of all pictures, C) of the vision tower."""
        found = self.model.model.get_image_features(
            batch["pixel_values"].to(self.device), batch["image_grid_thw"].to(self.device)
        )
        return torch.cat(list(found.pooler_output))

    def places(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Rotary positions (3, B, P) on the axes time, row, column."""
        ids, mask = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
        if self.positions == "reference" or "image_grid_thw" not in batch:
            return torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        found, _ = self.model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self.prompts.ids.image_pad).int(),
            image_grid_thw=batch["image_grid_thw"].to(self.device),
            attention_mask=mask,
        )
        places: Tensor = found
        return places

    @torch.no_grad()
    def answer(self, question: str, image: Image | None = None, *, max_new_tokens: int = 64) -> str:
        """The model's own answer in words, decoded greedily, to a question about a picture."""
        batch = self.prompts.chat([question], [image])
        end = self.prompts.tokenizer.token_to_id("<|im_end|>")
        places = self.places(batch)
        output = self._text(inputs_embeds=self.embed(batch), position_ids=places, use_cache=True)
        words: list[int] = []
        place = int(places.max())
        while len(words) < max_new_tokens:
            word = self.model.lm_head(output.last_hidden_state[:, -1]).argmax(-1)  # (1,)
            if int(word) == end:
                break
            words.append(int(word))
            place += 1
            output = self._text(
                inputs_embeds=self._text.embed_tokens(word)[:, None],
                position_ids=torch.full((3, 1, 1), place, device=self.device),
                past_key_values=output.past_key_values,
            )
        decoded: str = self.prompts.tokenizer.decode(words)
        return decoded.strip()

    @property
    def _text(self) -> Any:
        return self.model.model.language_model

    @torch.no_grad()
    def _prompt_cache(self, batch: Mapping[str, Tensor], places: Tensor, shared: int) -> Any:
        """Keys and values of the prompts, a fresh cache: soft positions leave their graph in it.

        There is no mask: padding is on the right, so causality hides it from every real token.
        The `shared` first columns, which all rows have in common, run for one row only.
        """
        from transformers import DynamicCache

        embedded = self.embed(batch)  # (B, P, C)
        rows, length, _ = embedded.shape
        layers = []
        if shared:
            first = self._text(
                inputs_embeds=embedded[:1, :shared],
                position_ids=places[:, :1, :shared],
                use_cache=True,
            )
            layers = [
                (layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1))
                for layer in first.past_key_values.layers
            ]
        cache = DynamicCache(layers, config=self.model.config)
        if shared < length:
            self._text(
                inputs_embeds=embedded[:, shared:],
                position_ids=places[:, :, shared:],
                past_key_values=cache,
            )
        return cache

    def _moved(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        moved = {name: tensor.to(self.device) for name, tensor in batch.items()}
        return moved, moved["attention_mask"]

    def _check(self, soft_tokens: Tensor) -> None:
        if soft_tokens.ndim != 3 or soft_tokens.shape[::2] != (1, self.hidden_dim):
            raise ValueError(
                f"soft tokens must be (1, S, {self.hidden_dim}), got {tuple(soft_tokens.shape)}"
            )

    def _soft_places(self, places: Tensor, mask: Tensor, num_soft: int) -> Tensor:
        """Positions (3, B, S) that continue after each row's last real token."""
        last = places.masked_fill(mask == 0, -1).amax(dim=(0, 2))  # (B,)
        following = torch.arange(1, num_soft + 1, device=places.device)
        return (last[:, None] + following).expand(3, -1, -1)


def soft_index(mask: Tensor, num_soft: int) -> Tensor:
    """Where soft tokens lie (B, S) in rows whose prompts `mask` (B, P) marks: right after them."""
    return mask.sum(1, keepdim=True) + torch.arange(num_soft, device=mask.device)


def num_shared(ids: Tensor, image_pad: int) -> int:
    """How many leading columns of `ids` (B, P) all rows have in common, up to the first picture.

    Prompts share their template at least; samples of one prompt share everything.
    """
    if len(ids) == 1:
        return ids.shape[1]
    same = (ids == ids[:1]).all(0) & (ids[0] != image_pad)
    return int(same.int().cumprod(0).sum())


def _build(
    sizes: Sizes,
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    positions: Positions = "reference",
    overlong: Overlong = "refuse",
) -> Qwen25VL:
    from transformers import Qwen2_5_VLForConditionalGeneration

    folder = _folder(sizes, weights)
    tokenizer = (
        byte_tokenizer(dict(zip(SPECIAL_TOKENS, sizes.special_ids, strict=True)))
        if folder is None
        else sources.read_tokenizer(folder, sizes.name)
    )
    ids = TokenIds.of(tokenizer)
    model = sources.load_frozen(
        Qwen2_5_VLForConditionalGeneration,
        sizes.config(ids),
        folder,
        owner=sizes.name,
        device=device,
        dtype=dtype,
    )
    prompts = Qwen25VLPrompts(
        tokenizer=tokenizer,
        ids=ids,
        picture=PictureSize(side=sizes.picture_side),
        max_prompt_tokens=sizes.max_prompt_tokens,
        overlong=overlong,
    )
    return Qwen25VL(model, prompts, positions=positions)


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


@hookimpl
def modalign_vlms() -> list[VLMSpec]:
    """Qwen2.5-VL in two published sizes, and the mini."""
    return [
        VLMSpec(
            name=sizes.name,
            summary=sizes.summary,
            build=partial(_build, sizes),
            hidden_dim=sizes.text["hidden_size"],
            max_positions=sizes.max_positions,
            requires=("transformers",),
            source=sizes.source,
            license=sizes.license,
        )
        for sizes in (QWEN_3B, QWEN_7B, MINI)
    ]
