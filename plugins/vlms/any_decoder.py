"""Any frozen causal decoder of transformers as the model that soft tokens read from."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modalign import BuildError, Prompt, PromptError, VLMOutput

from .chat_prompts import ROWS, ChatPrompts
from .soft_reading import after_prompts, check_layers, check_soft_tokens, stacked

# What type says of a token behind the prompt; 0, text, for all other models. PaliGemma's 0 is its
# prompt, which sees itself both ways, its 1 what is generated.
GENERATED_TYPE = {"paligemma": 1}


@dataclass
class Pass:
    """What the decoder was called with in one pass, and what it returned."""

    output: Any = None
    places: Tensor | None = None


class AnyDecoder:
    """Reads soft tokens that follow a prompt; nothing of the model is trained.

    A row is: padding, prompt, soft tokens. The model's own code merges pictures, numbers their
    places and builds masks, so nothing here knows one architecture. Keys and values of prompts are
    computed without autograd; where layers keep another state than these (linear attention), the
    whole row is differentiated instead: that state is updated in place.
    """

    def __init__(self, model: Any, prompts: ChatPrompts) -> None:
        """`model` is a transformers model for image-text-to-text or causal language modelling.

        Raises:
            BuildError: it has no causal decoder that takes embeddings, or no bound on positions.
        """
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        self.model, self.prompts = model, prompts
        self._base = model.base_model
        self._decoder = decoder_of(model)
        config = self._decoder.config.get_text_config(decoder=True)
        if not hasattr(config, "max_position_embeddings"):
            raise BuildError(f"{_named(model)} states no max_position_embeddings")
        self.hidden_dim: int = config.hidden_size
        self.num_layers: int = config.num_hidden_layers
        self.max_positions: int = config.max_position_embeddings
        # Models with several rotary axes number pictures themselves, from the mask.
        taken = inspect.signature(self._base.forward).parameters
        self._numbered = "position_ids" in taken and not hasattr(self._base, "get_rope_index")
        plain = {DynamicLayer, DynamicSlidingWindowLayer}
        self.cached = {type(layer) for layer in DynamicCache(config=config).layers} <= plain

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = self.model.device
        return device

    def prepare(
        self, prompts: Sequence[Prompt], answers: Sequence[str | None] | None = None
    ) -> dict[str, Tensor]:
        """Prompts in the model's chat form; see `ChatPrompts.prepare`.

        Raises:
            PromptError: a prompt is empty, too long, holds a control token or an unusable picture.
            ValueError: answers were given; this adapter has no language loss.
        """
        if answers is not None and any(answer is not None for answer in answers):
            raise ValueError("adapters of any model have no language loss; leave answers out")
        return self.prompts.prepare(prompts)

    def read(self, batch: Mapping[str, Tensor], soft_tokens: Tensor) -> VLMOutput:
        """Hidden states (B, S, C), after the last norm, at soft tokens (1, S, C).

        Raises:
            PromptError: the prompt and the soft tokens take more positions than the model has.
        """
        if not self.cached:
            return self.read_plain(batch, soft_tokens)
        return VLMOutput(self._after_prompt(batch, soft_tokens)[1].output.last_hidden_state)

    def read_plain(self, batch: Mapping[str, Tensor], soft_tokens: Tensor) -> VLMOutput:
        """The same as `read` in one differentiated pass over whole rows: slower, and simpler."""
        whole = self._whole(batch, soft_tokens).output.last_hidden_state
        return VLMOutput(whole[:, -soft_tokens.shape[1] :])

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
            PromptError: the prompt and the soft tokens take more positions than the model has.
            ValueError: a layer is not one of 0 to `num_layers`.
        """
        check_layers(layers, self.num_layers)
        if self.cached:
            passes = self._after_prompt(batch, soft_tokens, output_hidden_states=True)
            prompt, soft = (stacked(done.output, layers) for done in passes)
        else:
            done = self._whole(batch, soft_tokens, output_hidden_states=True)
            length = batch["input_ids"].shape[1]
            whole = stacked(done.output, layers)
            prompt, soft = whole[:, :, :length], whole[:, :, length:]
        if not prompt_states:
            return VLMOutput(soft)
        return after_prompts(prompt, batch["attention_mask"].to(soft.device), soft)

    def _after_prompt(
        self, batch: Mapping[str, Tensor], soft_tokens: Tensor, **options: Any
    ) -> tuple[Pass, Pass]:
        """The decoder's passes over the prompts, without autograd, and over the soft tokens."""
        from transformers import DynamicCache

        self._check(batch, soft_tokens)
        inputs = self._inputs(batch, 0)
        mask, num_soft = inputs["attention_mask"], soft_tokens.shape[1]
        # Fresh each time: soft positions leave their graph in it.
        cache = DynamicCache(config=self._decoder.config)
        with torch.no_grad(), self._watched(options) as prompt:
            self._base(**inputs, past_key_values=cache, use_cache=True)
        with self._watched(options) as soft:
            self._decoder(
                inputs_embeds=soft_tokens.to(self.model.dtype).expand(len(mask), -1, -1),
                attention_mask=torch.cat([mask, mask.new_ones(len(mask), num_soft)], dim=1),
                past_key_values=cache,
                use_cache=True,
                **following(prompt.places, mask, num_soft),
            )
        return prompt, soft

    def _whole(self, batch: Mapping[str, Tensor], soft_tokens: Tensor, **options: Any) -> Pass:
        """The decoder's pass over whole rows, soft tokens put where the embeddings enter it."""
        self._check(batch, soft_tokens)
        with self._watched(options, soft_tokens) as done:
            self._base(**self._inputs(batch, soft_tokens.shape[1]), use_cache=False)
        return done

    def _inputs(self, batch: Mapping[str, Tensor], num_soft: int) -> dict[str, Tensor]:
        """What the model takes, on its device, with `num_soft` more columns of text."""
        inputs = {}
        fills = {"input_ids": self.prompts.pad, "attention_mask": 1}
        generated = GENERATED_TYPE.get(self.model.config.model_type, 0)
        for name, tensor in batch.items():
            tensor = tensor.to(self.device)
            if name in ROWS:
                fill = fills.get(name, generated if name == "token_type_ids" else 0)
                tensor = torch.nn.functional.pad(tensor, (0, num_soft), value=fill)
            elif tensor.is_floating_point():
                tensor = tensor.to(self.model.dtype)
            inputs[name] = tensor
        if self._numbered:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return inputs

    @contextmanager
    def _watched(
        self, options: Mapping[str, Any], soft_tokens: Tensor | None = None
    ) -> Iterator[Pass]:
        """Records the decoder's next call; adds `options`, and puts soft tokens at its end."""
        done = Pass()

        def before(decoder: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            done.places = given.get("position_ids")
            if soft_tokens is not None:
                given = self._with_soft(given, soft_tokens)
            return args, {**given, **options}

        def after(decoder: Any, args: Any, output: Any) -> None:
            done.output = output

        handles = (
            self._decoder.register_forward_pre_hook(before, with_kwargs=True),
            self._decoder.register_forward_hook(after),
        )
        try:
            yield done
        finally:
            for handle in handles:
                handle.remove()

    def _with_soft(self, given: dict[str, Any], soft_tokens: Tensor) -> dict[str, Any]:
        """The decoder's arguments with soft tokens in the last columns of its embeddings."""
        embedded = given.get("inputs_embeds")
        if embedded is None:
            embedded = self._decoder.get_input_embeddings()(given["input_ids"])
        soft = soft_tokens.to(embedded.dtype).expand(len(embedded), -1, -1)
        prompts = embedded[:, : -soft.shape[1]].detach()
        others = {name: value for name, value in given.items() if name != "input_ids"}
        return {**others, "inputs_embeds": torch.cat([prompts, soft], dim=1)}

    def _check(self, batch: Mapping[str, Tensor], soft_tokens: Tensor) -> None:
        check_soft_tokens(soft_tokens, self.hidden_dim)
        length, num_soft = batch["input_ids"].shape[1], soft_tokens.shape[1]
        if length + num_soft > self.max_positions:
            raise PromptError(
                f"the prompt takes {length} positions and {num_soft} soft tokens follow, but the "
                f"model has {self.max_positions}; shorten it, or use fewer or smaller pictures"
            )


def decoder_of(model: Any) -> Any:
    """The part of `model` that soft tokens enter and that keeps keys and values.

    Raises:
        BuildError: the model has no causal decoder that takes embeddings alone.
    """
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder or config.is_encoder_decoder:
        raise BuildError(
            f"{_named(model)} has an encoder and a decoder, not a causal decoder alone"
        )
    decoder = model.base_model.get_decoder()
    while decoder.base_model is not decoder:  # a whole language model, with a head of words
        decoder = decoder.base_model.get_decoder()
    taken = inspect.signature(decoder.forward).parameters
    lacking = sorted({"inputs_embeds", "attention_mask", "past_key_values"} - set(taken))
    if lacking:
        raise BuildError(
            f"soft tokens cannot enter the decoder of {_named(model)}: it takes no "
            f"{', '.join(lacking)}"
        )
    if "cross_attention_states" in taken:
        raise BuildError(f"{_named(model)} sees pictures by cross-attention, which is not served")
    return decoder


def following(places: Tensor | None, mask: Tensor, num_soft: int) -> dict[str, Tensor]:
    """Positions of soft tokens, after the last ones of each row of prompts, as an argument.

    `places` are those the decoder was given for prompts: (B or 1, P), with several rotary axes
    (axes, B, P), or None if it counts by itself.
    """
    if places is None:
        return {}
    if places.ndim == 3 and len(places) == 4:  # the first then numbers text, for masks alone
        places = places[1:]
    real = places.masked_fill(mask == 0, -1)
    last = real.amax(dim=(0, 2)) if places.ndim == 3 else real.amax(dim=1)  # (B,)
    steps = torch.arange(1, num_soft + 1, device=places.device)
    soft = last[:, None] + steps  # (B, S)
    return {"position_ids": soft.expand(len(places), -1, -1) if places.ndim == 3 else soft}


def _named(model: Any) -> str:
    return f"{type(model).__name__} (model type {model.config.model_type!r})"
