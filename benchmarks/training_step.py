"""One training step of GAP3D at chosen sizes: ours, and the released design on the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from modalign_plugins.vlms.qwen_vl import soft_index
from modalign_plugins.vlms.qwen_vl_loading import adapter_of
from modalign_plugins.vlms.qwen_vl_sizes import Sizes
from torch import Tensor, nn

from benchmarks.released_design import (
    ReleasedDiT,
    read_whole_rows,
    released_loss,
    unread_word_loss,
)
from modalign import DiTConfig, TokenStream, TokenStreamSpec, installed
from modalign.models.dit import TokenStreamDiT
from modalign.models.flops import training_flops
from modalign.models.released import to_released
from modalign.objectives.flow_matching import FlowMatching

TEMPLATE = 23  # words before the caption in the released prompt; 8 follow, [IMG] the last
CAPTIONS = (32, 48)  # words of captions, in turn
CLIP = 1.0
LEARNING_RATE = 2.8e-4  # of stage 1


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """Sizes of a step: the head's, the language model's with its number of layers, and the batch's.

    Everything that is not said is GAP3D's. With `dtype` bfloat16 each design computes in it as it
    trains: ours keeps float32 weights under autocast, the released one bfloat16 weights beside
    float32 copies that its optimiser steps.
    """

    head: DiTConfig
    vlm: Sizes
    layers: int
    batch: int
    stream: TokenStreamSpec
    num_soft: int = 64
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def text(self) -> dict[str, Any]:
        return {**self.vlm.text, "num_hidden_layers": self.layers}

    @property
    def prompt_lengths(self) -> list[int]:
        """Of each row, [IMG] included."""
        return [TEMPLATE + CAPTIONS[k % len(CAPTIONS)] + 8 for k in range(self.batch)]

    def flops(self) -> int:
        """What a sample needs: the head three times, words once, soft tokens there and back."""
        text, mean = self.text, sum(self.prompt_lengths) / self.batch
        dim, inner, num_soft = text["hidden_size"], text["intermediate_size"], self.num_soft
        kv = text["num_key_value_heads"] * dim // text["num_attention_heads"]
        weights = self.layers * (2 * dim * dim + 2 * dim * kv + 3 * dim * inner)
        # Frozen weights get no gradient, so the way back costs once what the way there does.
        vlm = 2 * weights * (mean + 2 * num_soft)
        head = training_flops(self.head, self.stream, dim, num_soft)
        return head + round(vlm)


class Bench:
    """Parts and data of both steps: one frozen language model, two heads with the same weights."""

    def __init__(self, sizing: Sizing, seed: int = 0) -> None:
        self.sizing = sizing
        self.generator = torch.Generator().manual_seed(seed)
        device, dtype = sizing.device, sizing.dtype
        vision = {**sizing.vlm.vision, "depth": 1, "fullatt_block_indexes": [0]}  # never run
        self.vlm = adapter_of(
            replace(sizing.vlm, text=sizing.text, vision=vision),
            weights="random",
            device=device,
            dtype=dtype,
        )
        self.prompts = self._prompts()
        groups = sizing.stream.groups
        self.target = {
            group.name: self._randn(sizing.batch, group.num_tokens, group.dim).to(device, dtype)
            for group in groups
        }
        with torch.device(device):
            self.head = TokenStreamDiT(sizing.stream, sizing.head, self.vlm.hidden_dim)
        self._open_gates()
        soft = self._randn(1, sizing.num_soft, self.vlm.hidden_dim).to(device)
        self.soft_tokens = nn.Parameter(soft)
        recipe = installed().get("recipes", "gap3d")
        self.objective = FlowMatching(sizing.stream, recipe.flow, **recipe.objective.options)

    def ours(self, *, compiled: bool = False, recompute: bool = False) -> Step:
        """Our step, of a copy of the head: words without autograd, then soft tokens and back."""

        half = self.sizing.dtype != torch.float32
        head = copy.deepcopy(self.head)
        head.gradient_checkpointing = recompute
        soft_tokens = nn.Parameter(self.soft_tokens.detach().clone())
        if compiled:
            for block in head.blocks:
                block.compile()

        def loss(draws: Draws) -> Tensor:
            with torch.autocast(self.sizing.device, self.sizing.dtype, enabled=half):
                hidden = self.vlm.read(self.prompts, soft_tokens).hidden
                losses = self.objective.losses(
                    head,
                    hidden * draws.kept[:, None, None],
                    self.target,
                    noise=draws.noise,
                    t=draws.t,
                )
            return losses["loss"]

        return Step(loss, [*head.parameters(), soft_tokens], fused=True)

    def released(self) -> Step:
        """The released design's step, of a copy of the head in its layout."""
        device, dtype = self.sizing.device, self.sizing.dtype
        with torch.device(device):
            network = ReleasedDiT(self.sizing.stream, self.sizing.head, self.vlm.hidden_dim)
        network.to(dtype).load_state_dict(to_released(self.head.state_dict(), self.head))
        soft_tokens = nn.Parameter(self.soft_tokens.detach().to(dtype, copy=True))
        ids = self.whole_ids()
        index = soft_index(self.prompts["attention_mask"], self.sizing.num_soft).to(device)
        seen = (torch.arange(ids.shape[1], device=device) <= index[:, -1:]).long()
        model = self.vlm.model
        model.activation_checkpointing_enable()

        def loss(draws: Draws) -> Tensor:
            model.train()  # or nothing is recomputed
            try:
                embedded, _ = self.vlm.whole_embeddings(self.prompts, soft_tokens)
                hidden = read_whole_rows(model, embedded, seen, ids, index)
                return released_loss(
                    network, hidden, self.target,
                    noise=draws.noise, sigma=1 - draws.t, kept=draws.kept,
                )  # fmt: skip
            finally:
                model.eval()

        return Step(loss, [*network.parameters(), soft_tokens], fused=False)

    def unread_word_loss(self) -> Callable[[], Tensor]:
        """What of a released step does not grow with depth, and nothing reads."""
        ids, dim = self.whole_ids(), self.vlm.hidden_dim
        hidden = self._randn(*ids.shape, dim).to(self.sizing.device, self.sizing.dtype)
        hidden.requires_grad_()  # as it does behind soft tokens
        return lambda: unread_word_loss(self.vlm.model, hidden, ids)

    def whole_ids(self) -> Tensor:
        """Words of whole rows (B, P + S)."""
        ids = torch.nn.functional.pad(self.prompts["input_ids"], (0, self.sizing.num_soft))
        return ids.to(self.sizing.device)

    def draw(self) -> Draws:
        """Times on the released grid, drops and noise, all from one generator."""
        batch, device, dtype = self.sizing.batch, self.sizing.device, self.sizing.dtype
        t = (torch.rand(batch, generator=self.generator) * 1000).floor() / 1000
        kept = torch.rand(batch, generator=self.generator) >= 0.1
        noise = {
            name: self._randn(*tokens.shape).to(device, dtype)
            for name, tokens in self.target.items()
        }
        return Draws(noise, t.to(device), kept.to(device, dtype))

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def _open_gates(self) -> None:
        """Gates start closed, and would hide the cross-attention from a comparison."""
        with torch.no_grad():
            for name, parameter in self.head.named_parameters():
                if name.endswith("cross_gate"):
                    parameter.copy_(self._randn(*parameter.shape))

    def _prompts(self) -> dict[str, Tensor]:
        """Prompts as `prepare` gives them: a template in common, a caption, [IMG], padding."""
        lengths, known = self.sizing.prompt_lengths, self.vlm.prompts.ids
        ids = torch.full((self.sizing.batch, max(lengths)), known.pad)
        words = torch.randint(0, 250, ids.shape, generator=self.generator)
        words[:, :TEMPLATE] = words[0, :TEMPLATE].clone()
        mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
        ids = torch.where(mask, words, ids)
        ids[torch.arange(len(ids)), torch.tensor(lengths) - 1] = known.start
        return {"input_ids": ids, "attention_mask": mask.long()}


@dataclass(frozen=True)
class Draws:
    """What is random in a step: `noise`, `t` (B,), and `kept` (B,), 0 for dropped conditions."""

    noise: TokenStream
    t: Tensor
    kept: Tensor


class Step:
    """A loss, its gradients, clipping and AdamW; a call returns the loss before the change.

    Parameters that are not float32 are stepped as float32 copies.
    """

    def __init__(
        self, loss: Callable[[Draws], Tensor], parameters: list[nn.Parameter], *, fused: bool
    ) -> None:
        self.loss, self.parameters = loss, parameters
        self.stepped = [p if p.dtype == torch.float32 else p.detach().float() for p in parameters]
        self.optimiser = torch.optim.AdamW(
            self.stepped, LEARNING_RATE, weight_decay=0.0, fused=fused or None
        )

    def __call__(self, draws: Draws) -> Tensor:
        loss = self.loss(draws)
        loss.backward()
        copies = [
            (own, master)
            for own, master in zip(self.parameters, self.stepped, strict=True)
            if own is not master
        ]
        for own, master in copies:
            master.grad = None if own.grad is None else own.grad.float()
            own.grad = None
        torch.nn.utils.clip_grad_norm_(self.stepped, CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad()
        with torch.no_grad():
            for own, master in copies:
                own.copy_(master)
        return loss.detach()
