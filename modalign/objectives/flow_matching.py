"""Flow matching: a head learns the velocity from noise to data, group by group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modalign.hookspecs import hookimpl
from modalign.recipe import FlowConfig, Recipe
from modalign.sampling.schedule import draw_times
from modalign.specs import Head, ObjectiveSpec
from modalign.tokens import TokenStream, TokenStreamSpec


class FlowMatching:
    """Weighted mean squared error of the velocity x_1 - x_0 at x_t = t x_1 + (1 - t) x_0.

    All groups of a sample share one t. The condition of a share of samples is zeroed, which trains
    the null condition that guidance needs. Source: GAP3D (arXiv:2605.28995), eq. 1-5.
    """

    def __init__(
        self,
        stream: TokenStreamSpec,
        flow: FlowConfig = FlowConfig(),  # noqa: B008
        *,
        weights: Mapping[str, float] | None = None,
        condition_dropout: float = 0.1,
    ) -> None:
        """`weights` of groups are proportional to the root of their token count by default.

        Raises:
            ValueError: `weights` misses a group, names one that does not exist, or is negative.
        """
        self.stream, self.flow, self.condition_dropout = stream, flow, condition_dropout
        if weights is None:
            roots = {group.name: math.sqrt(group.num_tokens) for group in stream.groups}
            weights = {name: root / sum(roots.values()) for name, root in roots.items()}
        if set(weights) != set(stream.names) or min(weights.values()) < 0:
            raise ValueError(
                f"space {stream.space!r} has groups {stream.names}, each needs a weight >= 0; got "
                f"{dict(weights)}"
            )
        if not 0 <= condition_dropout < 1:
            raise ValueError(f"condition_dropout must be in [0, 1), got {condition_dropout}")
        self.weights = dict(weights)

    def __call__(
        self,
        head: Head,
        condition: Tensor,
        target: TokenStream,
        *,
        lm_loss: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> dict[str, Tensor]:
        """Losses as `losses` has them, at random times, of randomly dropped conditions.

        Draws from `generator` times, drops, then noise in the order of groups, each for the whole
        batch and on the generator's device: with one on the CPU they are the same everywhere.
        Of several generators each draws the same for its own element alone, which then depends
        neither on the batch around it nor on its place. `lm_loss` is not used, the VLM is frozen.

        Raises:
            ValueError: the number of generators is not B.
        """
        if isinstance(generator, Sequence):
            if len(generator) != len(condition):
                raise ValueError(
                    f"a batch of {len(condition)} needs one generator per element, got "
                    f"{len(generator)}"
                )
            drawn = [self._draw(1, one) for one in generator]
        else:
            drawn = [self._draw(len(condition), generator)]
        times, keeps, noises = zip(*drawn, strict=True)
        t, kept = (torch.cat(parts).to(condition.device) for parts in (times, keeps))
        noise = {
            name: torch.cat([stream[name] for stream in noises]).to(tokens.device)
            for name, tokens in target.items()
        }
        condition = condition * kept.to(condition.dtype)[:, None, None]
        return self.losses(head, condition, target, noise=noise, t=t)

    def _draw(
        self, batch: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, TokenStream]:
        """Times (B,), whether conditions are kept (B,), and noise (B, K, D), in this order."""
        device = None if generator is None else generator.device
        t = draw_times(self.flow, batch, generator)
        kept = torch.rand(batch, generator=generator, device=device) >= self.condition_dropout
        noise = {
            group.name: torch.randn(
                batch, group.num_tokens, group.dim, generator=generator, device=device
            )
            for group in self.stream.groups
        }
        return t, kept, noise

    def losses(
        self,
        head: Head,
        condition: Tensor,
        target: TokenStream,
        *,
        noise: TokenStream,
        t: Tensor,
    ) -> dict[str, Tensor]:
        """ "loss", the weighted sum, and "loss_<group>", each group's mean, float32.

        `target` and `noise` are streams (B, K, D), `t` (B,) times. A head that predicts data is
        compared in velocity space: its error is divided by max(1 - t, t_floor).
        """
        share = t[:, None, None].float()
        x_1 = {name: tokens.float() for name, tokens in target.items()}
        x_0 = {name: tokens.float() for name, tokens in noise.items()}
        # 1 - t before the cast: at t close to 1 float32 would lose it.
        rest = (1 - t)[:, None, None].float()
        x_t = {name: share * x_1[name] + rest * x_0[name] for name in x_1}
        predicted = head(x_t, t, condition)
        losses = {}
        for name, tokens in predicted.items():
            if self.flow.prediction == "velocity":
                error = tokens.float() - (x_1[name] - x_0[name])
            else:
                error = (tokens.float() - x_1[name]) / rest.clamp(min=self.flow.t_floor)
            losses[f"loss_{name}"] = error.square().mean()
        total = torch.stack([self.weights[name] * losses[f"loss_{name}"] for name in predicted])
        return {"loss": total.sum(), **losses}


def build(
    recipe: Recipe,
    stream: TokenStreamSpec,
    *,
    weights: Mapping[str, float] | None = None,
    condition_dropout: float = 0.1,
) -> FlowMatching:
    """The objective of `recipe` for streams of layout `stream`."""
    return FlowMatching(stream, recipe.flow, weights=weights, condition_dropout=condition_dropout)


@hookimpl
def modalign_objectives() -> list[ObjectiveSpec]:
    """Flow matching."""
    return [
        ObjectiveSpec(
            name="flow-matching",
            summary="Velocity of a straight path from noise to encoder tokens, weighted by group",
            build=build,
            head="dit",
        )
    ]
