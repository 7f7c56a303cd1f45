"""Expected numbers come from algebra."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from modalign.objectives.flow_matching import FlowMatching, build
from modalign.recipe import FlowConfig
from modalign.recipes.gap3d import GAP3D
from modalign.registry import Registry
from modalign.tokens import TokenGroup, TokenStream, TokenStreamSpec

SPEC = TokenStreamSpec(
    space="test",
    groups=(
        TokenGroup(name="cls", shape=(1,), dim=4),
        TokenGroup(name="registers", shape=(4,), dim=4),
        TokenGroup(name="patches", shape=(3, 3), dim=4),
    ),
)
CONDITION = torch.ones(5, 2, 3)


def stream(seed: int) -> TokenStream:
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.randn(5, group.num_tokens, group.dim, generator=generator)
        for group in SPEC.groups
    }


def zeros(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
    return {name: torch.zeros_like(tokens) for name, tokens in x_t.items()}


def test_the_true_velocity_has_no_loss() -> None:
    """v = (x_1 - x_t) / (1 - t) at every t < 1."""
    x_1, t = stream(0), torch.tensor([0.0, 0.2, 0.5, 0.9, 0.99])

    def head(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        return {name: (x_1[name] - x_t[name]) / (1 - t)[:, None, None] for name in x_1}

    losses = FlowMatching(SPEC).losses(head, CONDITION, x_1, noise=stream(1), t=t)
    assert losses["loss"] < 1e-8


def test_losses_are_weighted_means_of_squared_errors() -> None:
    weights = {"cls": 0.3, "registers": 0.3, "patches": 0.4}
    x_1, x_0 = stream(0), stream(1)
    losses = FlowMatching(SPEC, weights=weights).losses(
        zeros, CONDITION, x_1, noise=x_0, t=torch.full((5,), 0.5)
    )
    for name in weights:
        torch.testing.assert_close(losses[f"loss_{name}"], (x_1[name] - x_0[name]).square().mean())
    expected = sum(weights[name] * losses[f"loss_{name}"] for name in weights)
    torch.testing.assert_close(losses["loss"], expected)
    assert list(losses) == ["loss", "loss_cls", "loss_registers", "loss_patches"]


def test_the_head_sees_the_point_between_noise_and_data() -> None:
    x_1, x_0, t = stream(0), stream(1), torch.tensor([0.0, 0.25, 0.5, 0.75, 0.999])
    seen: list[TokenStream] = []

    def head(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        seen.append(x_t)
        return x_t

    FlowMatching(SPEC).losses(head, CONDITION, x_1, noise=x_0, t=t)
    torch.testing.assert_close(seen[0]["cls"][0], x_0["cls"][0])
    torch.testing.assert_close(
        seen[0]["patches"][1], 0.25 * x_1["patches"][1] + 0.75 * x_0["patches"][1]
    )


def test_predicting_data_costs_the_same_as_predicting_its_velocity() -> None:
    """Away from the floor both heads below make the same error in velocity space."""
    x_1, x_0, t = stream(0), stream(1), torch.tensor([0.0, 0.2, 0.5, 0.9, 0.94])

    def data(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        return {name: tokens * 0.5 for name, tokens in x_t.items()}

    def velocity(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        return {name: (0.5 * v - v) / (1 - t)[:, None, None] for name, v in x_t.items()}

    flow = FlowConfig(prediction="data")
    first = FlowMatching(SPEC, flow).losses(data, CONDITION, x_1, noise=x_0, t=t)
    second = FlowMatching(SPEC).losses(velocity, CONDITION, x_1, noise=x_0, t=t)
    torch.testing.assert_close(first["loss"], second["loss"])


def test_the_floor_bounds_the_loss_near_data() -> None:
    x_1, flow = stream(0), FlowConfig(prediction="data", t_floor=0.05)
    objective = FlowMatching(SPEC, flow)
    t = torch.full((5,), 1 - 1e-7, dtype=torch.float64)
    loss = objective.losses(zeros, CONDITION, x_1, noise=stream(1), t=t)["loss_cls"]
    torch.testing.assert_close(loss, x_1["cls"].square().mean() / 0.05**2)


def test_default_weights_grow_with_the_root_of_token_counts() -> None:
    weights = FlowMatching(SPEC).weights
    assert weights == pytest.approx({"cls": 1 / 6, "registers": 2 / 6, "patches": 3 / 6})
    assert math.isclose(sum(weights.values()), 1)


@pytest.mark.parametrize(
    "weights",
    [
        {"cls": 1.0, "registers": 1.0},
        {"cls": 1.0, "registers": 1.0, "patches": 1.0, "pooled": 1.0},
        {"cls": 1.0, "registers": 1.0, "patches": -1.0},
    ],
)
def test_weights_must_name_each_group_once(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"groups \('cls', 'registers', 'patches'\)"):
        FlowMatching(SPEC, weights=weights)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_share_of_conditions_is_dropped_whole(share: float) -> None:
    condition = torch.ones(2000, 2, 3)
    x_1 = {name: tokens[:1].expand(2000, -1, -1) for name, tokens in stream(0).items()}
    seen: list[Tensor] = []

    def head(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        seen.append(condition)
        return x_t

    objective = FlowMatching(SPEC, condition_dropout=share)
    objective(head, condition, x_1, generator=torch.Generator().manual_seed(0))
    kept = seen[0].mean(dim=(1, 2))
    assert set(kept.tolist()) <= {0.0, 1.0}
    assert (1 - kept).mean().item() == pytest.approx(share, abs=0.04)


def test_gradients_reach_the_condition_and_losses_are_float32() -> None:
    condition = CONDITION.clone().requires_grad_()

    def head(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        shift = condition.mean(dim=(1, 2))[:, None, None]
        return {name: (tokens + shift).bfloat16() for name, tokens in x_t.items()}

    half = {name: tokens.bfloat16() for name, tokens in stream(0).items()}
    losses = FlowMatching(SPEC, condition_dropout=0.0)(head, condition, half)
    losses["loss"].backward()
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert condition.grad is not None
    assert condition.grad.abs().min() > 0


def test_a_generator_repeats_the_losses() -> None:
    objective, x_1 = FlowMatching(SPEC), stream(0)
    first, again, other = (
        objective(zeros, CONDITION, x_1, generator=torch.Generator().manual_seed(seed))["loss"]
        for seed in (1, 1, 2)
    )
    assert first.equal(again)
    assert not first.equal(other)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_an_element_with_its_own_generator_depends_on_nothing_around_it() -> None:
    """Noise, time and drop of element 3 are the same alone, and at another place of the batch."""
    x_1, seen = stream(0), []

    def head(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        seen.append((x_t, t, condition))
        return x_t

    objective = FlowMatching(SPEC, condition_dropout=0.5)
    for order in ([0, 1, 2, 3, 4], [3], [4, 3, 0]):
        picked = {name: tokens[order] for name, tokens in x_1.items()}
        objective(head, CONDITION[order], picked, generator=generators(*order))
        place = order.index(3)
        x_t, t, condition = seen[-1]
        first = seen[0]
        assert all(torch.equal(x_t[name][place], first[0][name][3]) for name in x_t)
        assert torch.equal(t[place], first[1][3])
        assert torch.equal(condition[place], first[2][3])


def test_one_generator_of_one_element_draws_what_it_draws_for_a_batch_of_one() -> None:
    one = {name: tokens[:1] for name, tokens in stream(0).items()}
    objective = FlowMatching(SPEC)
    single = objective(zeros, CONDITION[:1], one, generator=generators(7)[0])
    listed = objective(zeros, CONDITION[:1], one, generator=generators(7))
    assert single["loss"].equal(listed["loss"])


def test_generators_must_be_as_many_as_elements() -> None:
    with pytest.raises(ValueError, match="batch of 5 needs one generator per element, got 2"):
        FlowMatching(SPEC)(zeros, CONDITION, stream(0), generator=generators(0, 1))


def test_the_objective_is_found_by_name_and_built_from_a_recipe() -> None:
    import modalign.objectives.flow_matching as plugin

    spec = Registry([("here", plugin)]).get("objectives", "flow-matching")
    objective = spec.build(GAP3D, SPEC, **GAP3D.objective.options)
    assert objective.weights == {"cls": 0.3, "registers": 0.3, "patches": 0.4}
    assert objective.flow.grid == 1000
    assert spec.head == "dit"
    with pytest.raises(ValueError, match="condition_dropout"):
        build(GAP3D, SPEC, condition_dropout=1.0)
