"""A Qwen-VL model, frozen, as the model that soft tokens read from: Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from modalign import Prompt, VLMOutput

from .qwen_vl_prompts import QwenVLPrompts
from .soft_reading import after_prompts, check_layers, check_soft_tokens, stacked

if TYPE_CHECKING:
    from PIL.Image import Image

Positions = Literal["reference", "native"]


class QwenVL:
    """Reads soft tokens that follow a prompt and [IMG]; nothing of the model is trained.

    A row is: prompt, [IMG], soft tokens, padding; attention is causal. `positions="reference"`
    numbers all tokens 0..L-1 on the three rotary axes, pictures too, as the released GAP3D does;
    "native" gives pictures Qwen's own places. Source: facts of the released GAP3D, section 2.
    Qwen3-VL also adds visual features to pictures' states after its first layers (DeepStack).
    """

    def __init__(
        self,
        model: Any,
        prompts: QwenVLPrompts,
        *,
        positions: Positions = "reference",
        start_embedding: Tensor | None = None,
    ) -> None:
        """`model` is transformers' Qwen2_5_VLForConditionalGeneration, or Qwen3VL's.

        `start_embedding` (C,) is what [IMG] looks like; None takes the mean of all words that
        come before it in the vocabulary, as the released GAP3D does.
        """
        if positions not in get_args(Positions):
            raise ValueError(f"positions must be one of {get_args(Positions)}, got {positions!r}")
        self.model = model
        self.hidden_dim: int = model.config.text_config.hidden_size
        self.num_layers: int = model.config.text_config.num_hidden_layers
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
        """Prompts in the recipe's template, ending in [IMG]; see `QwenVLPrompts.prepare`.

        Raises:
            PromptError: a prompt is empty, too long, holds a control token or an unusable picture.
            ValueError: answers were given; this adapter has no language loss.
        """
        if answers is not None and any(answer is not None for answer in answers):
            raise ValueError("qwen-vl adapters have no language loss; leave answers out")
        return self.prompts.prepare(prompts)

    def read(self, batch: Mapping[str, Tensor], soft_tokens: Tensor) -> VLMOutput:
        """Hidden states (B, S, C), after the last norm, at soft tokens (1, S, C).

        Prompts run once, without autograd, and leave keys and values; only the soft positions
        are differentiated. Exact: nothing before a soft token depends on it.
        """
        output, _ = self._cached(batch, soft_tokens)
        return VLMOutput(output.last_hidden_state)

    def read_layers(
        self,
        batch: Mapping[str, Tensor],
        soft_tokens: Tensor,
        *,
        layers: Sequence[int],
        prompt_states: bool = False,
    ) -> VLMOutput:
        """Hidden states (B, L, S, C) of `layers`, or (B, L, P + S, C) with those of the prompt.

        Raises:
            ValueError: a layer is not one of 0 to `num_layers`.
        """
        check_layers(layers, self.num_layers)
        output, passes = self._cached(batch, soft_tokens, output_hidden_states=True)
        soft = stacked(output, layers)
        if not prompt_states:
            return VLMOutput(soft)
        parts = [stacked(done, layers).expand(len(soft), -1, -1, -1) for done in passes]
        mask = batch["attention_mask"].to(soft.device)
        return after_prompts(torch.cat(parts, dim=2), mask, soft)

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
        check_soft_tokens(soft_tokens, self.hidden_dim)
        embedded, index = self.whole_embeddings(batch, soft_tokens)
        room = embedded.shape[1] - mask.shape[1]
        pictures = torch.nn.functional.pad(self._is_picture(batch), (0, room))
        total = torch.arange(embedded.shape[1], device=self.device)
        if places is None:
            prefix = self.places(batch)
            soft = self._soft_places(prefix, mask, soft_tokens.shape[1])
            places = total.expand(3, len(mask), -1).clone()
            places[:, :, : mask.shape[1]] = prefix
            places = places.scatter(2, index.expand(3, -1, -1), soft)
        seen = (total <= index[:, -1:]).long()
        output = self._text(
            inputs_embeds=embedded,
            position_ids=places,
            attention_mask=seen,
            **_deepstack(pictures, self._sight(batch)[1]),
            **options,
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
        return self._embedded(batch)[0]

    def picture_features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Merged patches (patches of all pictures, C) of the vision tower."""
        features = self._sight(batch)[0]
        assert features is not None, "a batch without pictures has no picture features"
        return features

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
        embedded, deepstack = self._embedded(batch)
        output = self._text(
            inputs_embeds=embedded,
            position_ids=places,
            use_cache=True,
            **_deepstack(self._is_picture(batch), deepstack),
        )
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

    def _cached(
        self, batch: Mapping[str, Tensor], soft_tokens: Tensor, **options: Any
    ) -> tuple[Any, list[Any]]:
        """The language model's outputs at soft tokens, and over the columns of prompts in order.

        The first pass over prompts may have run for one row only. `options` go to the model.
        """
        check_soft_tokens(soft_tokens, self.hidden_dim)
        num_soft = soft_tokens.shape[1]
        # Counted where `prepare` left the ids, on the CPU: a device need not be waited for.
        shared = num_shared(batch["input_ids"], self.prompts.ids.image_pad)
        batch, mask = self._moved(batch)
        places = self.places(batch)  # (3, B, P)
        soft = soft_tokens.to(self.model.dtype).expand(len(mask), -1, -1)
        seen = torch.cat([mask, mask.new_ones(len(mask), num_soft)], dim=1)
        cache, passes = self._prompt_cache(batch, places, shared, **options)
        output = self._text(
            inputs_embeds=soft,
            position_ids=self._soft_places(places, mask, num_soft),
            attention_mask=seen,
            past_key_values=cache,
            **options,
        )
        return output, passes

    @torch.no_grad()
    def _prompt_cache(
        self, batch: Mapping[str, Tensor], places: Tensor, shared: int, **options: Any
    ) -> tuple[Any, list[Any]]:
        """Keys and values of the prompts, a fresh cache: soft positions leave their graph in it.

        There is no mask: padding is on the right, so causality hides it from every real token.
        The `shared` first columns, which all rows have in common, run for one row only. Also
        returns the outputs of both passes.
        """
        from transformers import DynamicCache

        embedded, deepstack = self._embedded(batch)  # (B, P, C)
        pictures = self._is_picture(batch)
        rows, length, _ = embedded.shape
        layers, passes = [], []
        if shared:
            # Several rows share columns only up to the first picture; one row shares it all.
            first = self._text(
                inputs_embeds=embedded[:1, :shared],
                position_ids=places[:, :1, :shared],
                use_cache=True,
                **(_deepstack(pictures, deepstack) if rows == 1 else {}),
                **options,
            )
            passes.append(first)
            layers = [
                (layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1))
                for layer in first.past_key_values.layers
            ]
        cache = DynamicCache(layers, config=self.model.config)
        if shared < length:
            second = self._text(
                inputs_embeds=embedded[:, shared:],
                position_ids=places[:, :, shared:],
                past_key_values=cache,
                **_deepstack(pictures[:, shared:], deepstack),
                **options,
            )
            passes.append(second)
        return cache, passes

    @torch.no_grad()
    def _embedded(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """As `embed`, and what DeepStack adds to the pictures' states after the first layers."""
        ids = batch["input_ids"].to(self.device)
        embedded: Tensor = self._text.embed_tokens(ids)
        is_start = (ids == self.prompts.ids.start)[:, :, None]
        embedded = torch.where(is_start, self.start_embedding, embedded)
        features, deepstack = self._sight(batch)
        if features is not None:
            is_picture = self._is_picture(batch)[:, :, None]
            embedded = embedded.masked_scatter(is_picture, features.to(embedded.dtype))
        return embedded, deepstack

    @torch.no_grad()
    def _sight(self, batch: Mapping[str, Tensor]) -> tuple[Tensor | None, list[Tensor]]:
        """Merged patches (patches of all pictures, C), and DeepStack's, one tensor per layer."""
        if "pixel_values" not in batch:
            return None, []
        found = self.model.model.get_image_features(
            batch["pixel_values"].to(self.device), batch["image_grid_thw"].to(self.device)
        )
        deepstack = found.get("deepstack_features") or []  # Qwen2.5-VL has none
        return torch.cat(list(found.pooler_output)), [torch.cat(list(part)) for part in deepstack]

    def _is_picture(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Where pictures lie in the rows of ids (B, P)."""
        return (batch["input_ids"] == self.prompts.ids.image_pad).to(self.device)

    def _moved(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        moved = {name: tensor.to(self.device) for name, tensor in batch.items()}
        return moved, moved["attention_mask"]

    def _soft_places(self, places: Tensor, mask: Tensor, num_soft: int) -> Tensor:
        """Positions (3, B, S) that continue after each row's last real token."""
        last = places.masked_fill(mask == 0, -1).amax(dim=(0, 2))  # (B,)
        following = torch.arange(1, num_soft + 1, device=places.device)
        return (last[:, None] + following).expand(3, -1, -1)


def _deepstack(is_picture: Tensor, features: list[Tensor]) -> dict[str, Any]:
    """What the language model of Qwen3-VL takes besides embeddings; nothing where it adds nothing.

    `is_picture` (B, P) selects exactly the rows of each of `features`.
    """
    if not features:
        return {}
    return {"visual_pos_masks": is_picture, "deepstack_visual_embeds": features}


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
