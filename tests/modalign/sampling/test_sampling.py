"""Expected numbers come from algebra, or from numpy where the released schedule is meant."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from modalign.models.dit import TokenStreamDiT
from modalign.recipe import DiTConfig, FlowConfig, SamplerConfig
from modalign.sampling import draw_noise, sample
from modalign.sampling.guidance import guided_velocity, time_dtype
from modalign.sampling.schedule import (
    draw_times,
    network_time,
    noise_levels,
    shift_level,
    training_times,
)
from modalign.sampling.solvers import euler, heun
from modalign.tokens import TokenGroup, TokenStream, TokenStreamSpec

SPEC = TokenStreamSpec(
    space="test",
    groups=(
        TokenGroup(name="cls", shape=(1,), dim=4),
        TokenGroup(name="patches", shape=(2, 3), dim=4),
    ),
)
CONDITION = torch.linspace(-1, 1, 2 * 3 * 8).view(2, 3, 8)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def network() -> TokenStreamDiT:
    generator = torch.Generator().manual_seed(0)
    head = TokenStreamDiT(SPEC, DiTConfig(hidden_size=24, depth=2, num_heads=2, multiple_of=8), 8)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return head.requires_grad_(False)


def linear(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
    """A head that is linear in the condition's mean, so guidance has a closed form."""
    mean = condition.mean(dim=(1, 2))[:, None, None]
    return {name: mean + 0 * tokens for name, tokens in x_t.items()}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("prepares", [True, False])
def test_masked_positions_of_a_condition_change_nothing(guidance: float, prepares: bool) -> None:
    """Under guidance too, where the null condition has the same mask."""
    dit = network()
    head = dit if prepares else lambda x_t, t, condition, mask: dit(x_t, t, condition, mask)
    sampler = SamplerConfig(steps=2, guidance=guidance, guidance_interval=(0.6, 1.0))
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    found = []
    for value in (0.0, 9.0):
        condition = CONDITION.clone()
        condition[0, 0] = value
        stream = sample(
            head, SPEC, condition, sampler=sampler, generators=generators(1, 2), mask=mask
        )
        found.append(SPEC.pack(stream))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    short = sample(dit, SPEC, CONDITION[:1, 1:], sampler=sampler, generators=generators(1))
    torch.testing.assert_close(SPEC.pack(short), found[0][:1])


def test_a_perfect_velocity_carries_noise_exactly_to_data() -> None:
    """On a straight path one Euler step with v = x_1 - x_0 must land on x_1 (eq. 1-2)."""
    x_1 = draw_noise(SPEC, generators(5, 6))

    def head(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        assert t.eq(0).all()  # one step: the only call is at the noise end
        return {name: x_1[name] - tokens for name, tokens in x_t.items()}

    sampler = SamplerConfig(steps=1, guidance=1.0)
    out = sample(head, SPEC, CONDITION, sampler=sampler, generators=generators(0, 1))
    for name, tokens in x_1.items():
        torch.testing.assert_close(out[name], tokens)


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2)])
def test_solvers_have_their_order(solver, order: int) -> None:  # type: ignore[no-untyped-def]
    """dx/dt = x + t has the solution 2 e - 2 at t = 1 from x = 1: halving steps divides errors."""
    exact = 2 * math.e - 2
    errors = []
    for steps in (32, 64):
        start = {"cls": torch.ones(1, 1, 1, dtype=torch.float64)}
        end = solver(lambda x, level: {"cls": x["cls"] + (1 - level)}, start, noise_levels(steps))
        errors.append(abs(end["cls"].item() - exact))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_heun_never_asks_at_the_data_end() -> None:
    asked: list[float] = []

    def velocity(x: TokenStream, level: float) -> TokenStream:
        asked.append(level)
        return x

    heun(velocity, {"cls": torch.ones(1, 1, 1)}, noise_levels(4))
    assert asked == [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]


def test_guidance_is_linear_in_its_scale() -> None:
    """v_null = 0 and v_cond = m here, so one step moves by g m."""
    noise = draw_noise(SPEC, generators(0, 1))
    mean = CONDITION.mean(dim=(1, 2))[:, None, None]
    for guidance in (1.0, 3.0, 0.0):
        sampler = SamplerConfig(steps=1, guidance=guidance)
        out = sample(linear, SPEC, CONDITION, sampler=sampler, noise=noise)
        torch.testing.assert_close(out["patches"], noise["patches"] + guidance * mean)


def test_guidance_rests_outside_its_interval() -> None:
    sizes = []

    def head(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        sizes.append((round(1 - t[0].item(), 2), len(condition)))
        return linear(x_t, t, condition)

    sampler = SamplerConfig(steps=4, guidance=3.0, guidance_interval=(0.4, 0.8))
    sample(head, SPEC, CONDITION, sampler=sampler, generators=generators(0, 1))
    assert sizes == [(1.0, 2), (0.75, 4), (0.5, 4), (0.25, 2)]


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7)])
def test_preparing_the_condition_changes_nothing(interval: tuple[float, float]) -> None:
    head = network()
    sampler = SamplerConfig(steps=4, guidance=2.0, guidance_interval=interval)
    noise = draw_noise(SPEC, generators(0, 1))
    prepared = sample(head, SPEC, CONDITION, sampler=sampler, noise=noise)
    plain = sample(lambda *args: head(*args), SPEC, CONDITION, sampler=sampler, noise=noise)
    for name, tokens in plain.items():
        torch.testing.assert_close(prepared[name], tokens)


def test_predicting_data_or_its_velocity_is_the_same_path() -> None:
    head = network()

    def data_head(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        v, rest = head(x_t, t, condition), (1 - t)[:, None, None].float()
        return {name: tokens + rest * v[name] for name, tokens in x_t.items()}

    noise = draw_noise(SPEC, generators(0, 1))
    for solver in ("euler", "heun"):
        sampler = SamplerConfig(solver=solver, steps=7, guidance=2.0)  # type: ignore[arg-type]
        flows = FlowConfig(shift=3.0), FlowConfig(shift=3.0, prediction="data")
        first = sample(head, SPEC, CONDITION, flow=flows[0], sampler=sampler, noise=noise)
        second = sample(data_head, SPEC, CONDITION, flow=flows[1], sampler=sampler, noise=noise)
        torch.testing.assert_close(first["patches"], second["patches"], atol=1e-4, rtol=1e-4)


def test_a_seed_repeats_a_sample_bit_for_bit_and_another_changes_it() -> None:
    head, sampler = network(), SamplerConfig(steps=3)
    first, again, other = (
        sample(head, SPEC, CONDITION, sampler=sampler, generators=generators(*seeds))
        for seeds in ((7, 8), (7, 8), (9, 10))
    )
    assert all(first[name].equal(again[name]) for name in first)
    assert not first["cls"].equal(other["cls"])


def test_a_sample_does_not_depend_on_its_batch() -> None:
    head, sampler = network(), SamplerConfig(steps=3)
    both = sample(head, SPEC, CONDITION, sampler=sampler, generators=generators(7, 8))
    for index, seed in ((0, 7), (1, 8)):
        part = CONDITION[index : index + 1]
        alone = sample(head, SPEC, part, sampler=sampler, generators=generators(seed))
        torch.testing.assert_close(alone["patches"], both["patches"][index : index + 1])


def test_noise_is_drawn_group_by_group_for_each_sample() -> None:
    noise = draw_noise(SPEC, generators(3, 4))
    generator = torch.Generator().manual_seed(4)
    assert noise["cls"][1].equal(torch.randn(1, 4, generator=generator))
    assert noise["patches"][1].equal(torch.randn(6, 4, generator=generator))


def test_progress_counts_steps() -> None:
    done: list[int] = []
    sampler = SamplerConfig(steps=3, guidance=1.0)
    sample(
        linear, SPEC, CONDITION, sampler=sampler, generators=generators(0, 1), progress=done.append
    )
    assert done == [1, 2, 3]


def test_a_condition_in_half_precision_gives_a_stream_in_half_precision() -> None:
    out = sample(
        linear,
        SPEC,
        CONDITION.bfloat16(),
        sampler=SamplerConfig(steps=2),
        generators=generators(0, 1),
    )
    assert out["cls"].dtype == torch.bfloat16


def test_a_wrong_number_of_generators_is_named() -> None:
    with pytest.raises(ValueError, match="batch of 2 needs one generator per sample, got 1"):
        sample(linear, SPEC, CONDITION, generators=generators(0))
    with pytest.raises(ValueError, match="patches"):
        sample(linear, SPEC, CONDITION, noise={"cls": torch.zeros(2, 1, 4)})


def test_the_shift_is_shared_by_training_and_sampling() -> None:
    """The same uniform levels give the same times: u = i / N is both a draw and a grid point."""
    flow = FlowConfig(shift=4.6)
    uniform = torch.arange(8, dtype=torch.float64) / 8
    grid = torch.tensor([network_time(level) for level in noise_levels(8, flow.shift)[:-1]])
    torch.testing.assert_close(training_times(uniform, flow).float(), grid)


def test_a_shift_keeps_the_ends_and_spends_more_time_near_noise() -> None:
    levels = noise_levels(10, 5.0)
    assert (levels[0], levels[-1]) == (1.0, 0.0)
    assert all(a > b for a, b in zip(levels, levels[1:], strict=False))
    assert levels[5] == pytest.approx(5 * 0.5 / (1 + 4 * 0.5))
    assert shift_level(shift_level(0.3, 5.0), 1 / 5.0) == pytest.approx(0.3)


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 30, 50, 57, 100, 999, 1000])
def test_integer_times_are_those_of_the_released_sampler(steps: int) -> None:
    """Second implementation: float32 numpy levels, times 1000, truncated."""
    released = (np.linspace(1, 1 / steps, steps).astype(np.float32) * np.float32(1000)).astype(int)
    times = [network_time(level, integer=True) for level in noise_levels(steps)[:-1]]
    told = (1000 * (1 - torch.tensor(times, dtype=torch.float64))).float()
    assert told.tolist() == released.tolist()


def test_times_on_a_grid_are_thousandths_without_the_data_end() -> None:
    flow = FlowConfig(grid=1000)
    u = torch.tensor([0.0, 0.0004, 0.5, 0.99999])
    expected = torch.tensor([0.0, 0.0, 0.5, 0.999], dtype=torch.float64)
    torch.testing.assert_close(training_times(u, flow), expected)


@pytest.mark.parametrize(
    ("flow", "median"),
    [
        (FlowConfig(), 0.5),
        (FlowConfig(grid=1000), 0.5),
        (FlowConfig(time="logit-normal"), 0.5),
        (FlowConfig(time="logit-normal", logit_std=2.0), 0.5),
        (FlowConfig(time="logit-normal", shift=4.0), 0.2),  # level 4/5
    ],
)
def test_drawn_times_lie_where_they_should(flow: FlowConfig, median: float) -> None:
    t = draw_times(flow, 4000, torch.Generator().manual_seed(0))
    assert t.min() >= 0
    assert t.max() < 1
    assert t.median().item() == pytest.approx(median, abs=0.03)
    if flow.time == "logit-normal" and flow.shift == 1:
        assert torch.logit(t).std().item() == pytest.approx(flow.logit_std, rel=0.05)


def test_integer_time_reaches_the_head() -> None:
    told: list[float] = []

    def head(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        told.append(1000 * (1 - t[0].item()))
        return linear(x_t, t, condition)

    sampler = SamplerConfig(steps=30, integer_time=True)
    velocity = guided_velocity(head, CONDITION, FlowConfig(), sampler)
    velocity(draw_noise(SPEC, generators(0, 1)), 29 / 30)
    assert told == [pytest.approx(966, abs=1e-9)]


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float64), ("cuda", torch.float64), ("mps", torch.float32)],
)
def test_times_have_the_precision_that_their_device_has(device: str, dtype: torch.dtype) -> None:
    """MPS refuses float64."""
    assert time_dtype(torch.device(device)) == dtype
