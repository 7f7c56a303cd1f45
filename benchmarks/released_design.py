"""One training step as GAP3D's released code lays it out, from public classes of two libraries.

Rebuilt from the facts of that code (sections 1, 2, 4 and 8), not from its text: diffusers' Lumina
blocks below three kinds of tokens, transformers' Qwen2.5-VL above them. What makes it slow is kept
as it is there: whole rows of the language model in the autograd graph, logits over the vocabulary
and a cross-entropy that nothing reads, masks of ones, every block and layer recomputed, context
projected in every recomputation, one table of 384 x 384 rotations, an optimiser that is not fused.
It is exact, too: `tests/test_training_benchmark.py` compares losses and gradients with ours.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modalign import DiTConfig, TokenStream, TokenStreamSpec

TABLE_SIDE = 384
WEIGHTS = {"patches": 0.4, "cls": 0.3, "registers": 0.3}


class ReleasedDiT(nn.Module):
    """The released network, under its released names: class, registers and a grid of patches."""

    def __init__(self, stream: TokenStreamSpec, config: DiTConfig, condition_dim: int) -> None:
        from diffusers.models.embeddings import (
            LuminaCombinedTimestepCaptionEmbedding,
            LuminaPatchEmbed,
            PixArtAlphaTextProjection,
            get_2d_rotary_pos_embed_lumina,
        )
        from diffusers.models.normalization import LuminaLayerNormContinuous
        from diffusers.models.transformers.lumina_nextdit2d import LuminaNextDiTBlock

        super().__init__()
        dim, groups = config.hidden_size, {group.name: group for group in stream.groups}
        channels, modulation_dim = groups["patches"].dim, min(dim, 1024)
        self.num_registers = groups["registers"].num_tokens
        self.patch_embedder = LuminaPatchEmbed(1, channels, dim, bias=True)
        self.cls_embed = nn.Linear(channels, dim)
        self.reg_embed = nn.Linear(channels, dim)
        self.cls_role = nn.Parameter(torch.zeros(1, dim))
        self.reg_roles = nn.Parameter(torch.zeros(1, self.num_registers, dim))
        self.caption_projection = PixArtAlphaTextProjection(condition_dim, dim)
        self.time_caption_embed = LuminaCombinedTimestepCaptionEmbedding(modulation_dim, dim)
        self.layers = nn.ModuleList(
            LuminaNextDiTBlock(
                dim, config.num_heads, config.num_kv_heads or config.num_heads, config.multiple_of,
                config.ffn_dim_multiplier, config.norm_eps, True, dim,
            )
            for _ in range(config.depth)
        )  # fmt: skip
        self.norm_out = LuminaLayerNormContinuous(
            dim, modulation_dim, elementwise_affine=False, eps=1e-6, bias=True, out_dim=channels
        )
        self.rotary = get_2d_rotary_pos_embed_lumina(
            dim // config.num_heads, TABLE_SIDE, TABLE_SIDE
        )  # on the CPU, and not a buffer

    def forward(
        self,
        patches: Tensor,
        cls: Tensor,
        registers: Tensor,
        clock: Tensor,
        context: Tensor,
        context_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise - data of a grid (B, D, H, W), class tokens (B, D) and registers (B, R, D).

        `clock` (B,) runs from 1000 (noise) to 0; `context` is (B, S, C), its mask (B, S) of ones.
        """
        batch, channels, height, width = patches.shape
        rotary = self.rotary.to(patches.device)
        grid, mask, _, table = self.patch_embedder(patches, rotary)
        cls_token = self.cls_embed(cls)[:, None] + self.cls_role
        register_tokens = self.reg_embed(registers) + self.reg_roles
        x = torch.cat([cls_token, register_tokens, grid], dim=1)
        still = torch.ones(
            len(table), 1 + self.num_registers, table.shape[-1],
            dtype=table.dtype, device=table.device,
        )  # fmt: skip
        table = torch.cat([still, table], dim=1)
        mask = torch.cat([mask.new_ones(batch, 1 + self.num_registers), mask], dim=1)
        assert mask.all()
        context = self.caption_projection(context)
        signal = self.time_caption_embed(clock, context, context_mask)
        context_mask = context_mask.bool()
        for layer in self.layers:
            x = checkpoint(
                layer, x, mask, table, context, context_mask, signal, {}, use_reentrant=False
            )
        x = self.norm_out(x, signal)
        cls_token, register_tokens, grid = x.split([1, self.num_registers, height * width], dim=1)
        grid = grid.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return grid, cls_token[:, 0], register_tokens


def read_whole_rows(
    model: Any, embedded: Tensor, mask: Tensor, ids: Tensor, index: Tensor
) -> Tensor:
    """States (B, S, C) at `index` (B, S) of rows (B, L, C), all of them differentiated.

    `model` is transformers' Qwen2.5-VL, in training mode with recomputation.
    """
    hidden: Tensor = model.model.language_model(
        inputs_embeds=embedded, attention_mask=mask, use_cache=False
    ).last_hidden_state
    unread_word_loss(model, hidden, ids)
    return hidden[torch.arange(len(hidden), device=hidden.device)[:, None], index]


def unread_word_loss(model: Any, hidden: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy over the vocabulary at states (B, L, C), in float32; nothing depends on it."""
    words = model.lm_head(hidden).float()
    return F.cross_entropy(words[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def released_loss(
    network: ReleasedDiT,
    condition: Tensor,
    target: TokenStream,
    *,
    noise: TokenStream,
    sigma: Tensor,
    kept: Tensor,
) -> Tensor:
    """The released loss at noise levels `sigma` (B,), of conditions (B, S, C) where `kept` is 1."""
    condition = condition * kept[:, None, None]
    side = round(target["patches"].shape[1] ** 0.5)

    def shaped(stream: TokenStream) -> tuple[Tensor, Tensor, Tensor]:
        grid = stream["patches"].transpose(1, 2).unflatten(2, (side, side))
        return grid, stream["cls"][:, 0], stream["registers"]

    data, drawn, noisy = shaped(target), shaped(noise), []
    for x_1, x_0 in zip(data, drawn, strict=True):
        level = sigma.view(-1, *[1] * (x_1.ndim - 1)).to(x_1.dtype)
        noisy.append((1 - level) * x_1 + level * x_0)
    mask = torch.ones(condition.shape[:2], dtype=torch.int32, device=condition.device)
    predicted = network(*noisy, 1000 * sigma, condition, mask)
    losses = [
        F.mse_loss(found.float(), (x_0 - x_1).float())
        for found, x_0, x_1 in zip(predicted, drawn, data, strict=True)
    ]
    return (
        WEIGHTS["patches"] * losses[0]
        + WEIGHTS["cls"] * losses[1]
        + WEIGHTS["registers"] * losses[2]
    )
