"""`TokenStreamDiT`: a diffusion transformer that predicts a token stream from a condition.

Read top-down: what a condition becomes (`ConditionEncoder`), then the network itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modalign.models.block import Block, KeyValue, RMSNorm
from modalign.models.rotary import Extrapolation, rotary_table
from modalign.recipe import DiTConfig
from modalign.tokens import TokenStream, TokenStreamSpec

NUM_TIME_FREQUENCIES = 128
MAX_MODULATION_DIM = 1024  # of the released network, whatever its width or stream
CLOCK = 1000.0  # the network's own time runs from 1000 (noise) to 0 (data)


@dataclass(frozen=True)
class Condition:
    """A condition as the network reads it; independent of x_t and t, so computed once per sample.

    `pooled` (B, T) joins the time embedding, `context` holds one key-value pair per block,
    `mask` (B, 1, 1, S) is true at real positions, or None if all are.
    """

    pooled: Tensor
    context: tuple[KeyValue, ...]
    mask: Tensor | None = None

    def __getitem__(self, batch: slice) -> Condition:
        """The part of the batch that `batch` selects."""
        return Condition(
            pooled=self.pooled[batch],
            context=tuple((key[batch], value[batch]) for key, value in self.context),
            mask=None if self.mask is None else self.mask[batch],
        )


class ContextProjection(nn.Module):
    """Keys and values of one block's cross-attention, un-rotated."""

    def __init__(self, config: DiTConfig, dim: int) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_heads
        kv_dim = (config.num_kv_heads or config.num_heads) * self.head_dim
        self.norm = RMSNorm(dim, config.norm_eps)
        self.to_k = nn.Linear(dim, kv_dim, bias=False)
        self.to_v = nn.Linear(dim, kv_dim, bias=False)
        self.norm_k = nn.LayerNorm(kv_dim)

    def forward(self, tokens: Tensor) -> KeyValue:
        """Each (B, kv_heads, S, head_dim) from projected condition tokens (B, S, D)."""
        tokens = self.norm(tokens)
        parts = (self.norm_k(self.to_k(tokens)), self.to_v(tokens))
        key, value = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        return key, value


class ConditionEncoder(nn.Module):
    """Everything the network computes from the condition alone."""

    def __init__(
        self, config: DiTConfig, condition_dim: int, modulation_dim: int, projected: bool
    ) -> None:
        super().__init__()
        dim = config.hidden_size if projected else condition_dim
        self.projection: nn.Module = nn.Identity()
        if projected:
            self.projection = nn.Sequential(
                nn.Linear(condition_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
            )
        self.pool = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, modulation_dim))
        self.context = nn.ModuleList(ContextProjection(config, dim) for _ in range(config.depth))

    def forward(self, condition: Tensor, mask: Tensor | None = None) -> Condition:
        """From (B, S, C); `mask` (B, S) is true, or 1, at real positions."""
        tokens = self.projection(condition)  # (B, S, D)
        if mask is None:
            mean = tokens.mean(dim=1)
        else:
            share = mask.to(tokens.dtype) / mask.sum(dim=1, keepdim=True).to(tokens.dtype)
            mean = (tokens * share[..., None]).sum(dim=1)
        return Condition(
            pooled=self.pool(mean),
            context=tuple(project(tokens) for project in self.context),
            mask=None if mask is None else mask.bool()[:, None, None],
        )


class GroupInput(nn.Module):
    """Tokens of one group in the network's width; those without a place get a learned role."""

    def __init__(self, dim: int, hidden_size: int, num_roles: int) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, hidden_size)
        self.register_parameter("role", None)
        if num_roles:
            self.role = nn.Parameter(torch.empty(num_roles, hidden_size))
            nn.init.trunc_normal_(self.role, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, K, hidden_size) from (B, K, D)."""
        hidden: Tensor = self.projection(tokens)
        return hidden if self.role is None else hidden + self.role


class TokenStreamDiT(nn.Module):
    """Predicts a stream of layout `stream` from noise, time and a condition of width C.

    Each group has its own input projection; groups with a place (two axes) turn with axial rotary
    positions, the others carry one learned role per token. All groups of one width share an output
    projection. With GAP3D's recipe this is the released network, and its weights load after
    `conversion.read_released`, which negates the output projections: t runs from noise to data
    here, from data to noise there. Initialised as torch does, except closed gates and small roles.

    Args:
        stream: layout of what goes in and comes out.
        config: size.
        condition_dim: C, the width of the condition.
        project_condition: whether a two-layer perceptron first carries the condition to the
            network's width (GAP3D, BLIP3-o), or it is used as it is (Lumina-Next).
        extrapolation: rotary and attention scaling for larger grids than were trained.

    Source: facts of the released GAP3D network, section 1.
    """

    def __init__(
        self,
        stream: TokenStreamSpec,
        config: DiTConfig,
        condition_dim: int,
        *,
        project_condition: bool = True,
        extrapolation: Extrapolation = Extrapolation(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.stream, self.config, self.condition_dim = stream, config, condition_dim
        self.extrapolation = extrapolation
        self.gradient_checkpointing = False
        dim = config.hidden_size
        modulation_dim = min(dim, MAX_MODULATION_DIM)
        self.inputs = nn.ModuleList(
            GroupInput(group.dim, dim, 0 if group.has_place else group.num_tokens)
            for group in stream.groups
        )
        self.time = nn.Sequential(
            nn.Linear(2 * NUM_TIME_FREQUENCIES, modulation_dim),
            nn.SiLU(),
            nn.Linear(modulation_dim, modulation_dim),
        )
        self.condition_encoder = ConditionEncoder(
            config, condition_dim, modulation_dim, project_condition
        )
        self.blocks = nn.ModuleList(Block(config, modulation_dim) for _ in range(config.depth))
        self.output_modulation = nn.Linear(modulation_dim, dim)
        self.output_dims = tuple(dict.fromkeys(group.dim for group in stream.groups))
        self.outputs = nn.ModuleList(nn.Linear(dim, width) for width in self.output_dims)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.output_modulation.weight.dtype

    def prepare_condition(self, condition: Tensor, mask: Tensor | None = None) -> Condition:
        """What `forward` computes from the condition (B, S, C) alone, to compute it only once.

        `mask` (B, S) is true, or 1, at real positions; every row needs at least one.
        """
        prepared: Condition = self.condition_encoder(condition.to(self.dtype), mask)
        return prepared

    def forward(
        self,
        x_t: TokenStream,
        t: Tensor,
        condition: Tensor | Condition,
        condition_mask: Tensor | None = None,
    ) -> TokenStream:
        """The prediction, a stream like `x_t`, at times `t` (B,), 0 noise and 1 data.

        Times may be float64, where a fraction of a step matters. `condition` is (B, S, C), or the
        result of `prepare_condition`. Tokens and condition are read in the network's dtype.
        """
        if not isinstance(condition, Condition):
            condition = self.prepare_condition(condition, condition_mask)
        names, sizes = self.stream.names, [group.num_tokens for group in self.stream.groups]
        x = torch.cat(
            [
                project(x_t[name].to(self.dtype))
                for name, project in zip(names, self.inputs, strict=True)
            ],
            dim=1,
        )  # (B, N, D)
        features = time_features(CLOCK * (1 - t))
        signal = F.silu(self.time(features.to(x.dtype)) + condition.pooled)
        head_dim = self.config.hidden_size // self.config.num_heads
        rotary = rotary_table(self.stream, head_dim, self.extrapolation, x.device)
        scale = 1 / math.sqrt(head_dim)
        if self.extrapolation.base_tokens is not None:
            scale *= math.sqrt(math.log(x.shape[1], self.extrapolation.base_tokens))
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        for block, context in zip(self.blocks, condition.context, strict=True):
            arguments = (x, signal, rotary, context, condition.mask, scale)
            if recompute:
                x = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x = block(*arguments)
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        x = x * (1 + self.output_modulation(signal)[:, None])
        if len(self.outputs) == 1:
            return dict(zip(names, self.outputs[0](x).split(sizes, dim=1), strict=True))
        by_dim = dict(zip(self.output_dims, self.outputs, strict=True))
        return {
            group.name: by_dim[group.dim](tokens)
            for group, tokens in zip(self.stream.groups, x.split(sizes, dim=1), strict=True)
        }


def time_features(clock: Tensor) -> Tensor:
    """Cosines then sines (B, 256) of the clock (B,) at geometric frequencies, float32.

    The exponent is rounded to float32 as in the released network, then raised exactly: at 1000 a
    last-place error of a frequency already shows, and float32 `exp` differs between processors. So
    they are made on the CPU, which has float64 on every machine.
    """
    steps = torch.arange(NUM_TIME_FREQUENCIES, dtype=torch.float32, device="cpu")
    exponents = -math.log(10000.0) * steps / NUM_TIME_FREQUENCIES
    angles = clock.float()[:, None] * exponents.double().exp().float().to(clock.device)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
