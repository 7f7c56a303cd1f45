"""Sampling from a given stream: what strength and kept tokens promise, exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from modalign import Pipeline, Progress, TokenGroup, TokenStream, TokenStreamSpec, build
from modalign.recipe import FlowConfig, SamplerConfig
from modalign.sampling import Start, draw_noise, sample
from modalign.sampling.schedule import noise_levels
from tests.modalign import stubs

SPEC = TokenStreamSpec(
    space="test",
    groups=(
        TokenGroup(name="cls", shape=(1,), dim=4),
        TokenGroup(name="patches", shape=(2, 3), dim=4),
    ),
)
CONDITION = torch.linspace(-1, 1, 2 * 3 * 8).view(2, 3, 8)
NOISE = draw_noise(SPEC, [torch.Generator().manual_seed(seed) for seed in (0, 1)])
DATA = draw_noise(SPEC, [torch.Generator().manual_seed(seed) for seed in (2, 3)])
ODD = torch.arange(6) % 2 == 1


def curved(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
    mean = condition.mean(dim=(1, 2))[:, None, None]
    return {name: torch.sin(3 * tokens) + mean for name, tokens in x_t.items()}


def sampled(start: Start | None = None, head=curved, **changes) -> TokenStream:
    sampler = SamplerConfig(**({"steps": 5, "guidance": 2.0} | changes))
    return sample(head, SPEC, CONDITION, sampler=sampler, noise=NOISE, start=start)


def equal(one: TokenStream, other: TokenStream) -> bool:
    return all(torch.equal(one[name], other[name]) for name in SPEC.names)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_full_strength_is_plain_sampling_bit_for_bit(solver: str) -> None:
    plain = sampled(solver=solver)
    assert equal(sampled(Start(DATA), solver=solver), plain)
    nothing = {"patches": torch.zeros(6, dtype=torch.bool)}
    assert equal(sampled(Start(DATA, 1.0, nothing), solver=solver), plain)


def test_no_strength_returns_the_stream_and_asks_nothing() -> None:
    def head(*args: object) -> TokenStream:
        raise AssertionError("the head was asked")

    assert equal(sampled(Start(DATA, 0.0), head), DATA)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("strength", [0.05, 0.37, 0.6, 0.999])
def test_the_velocity_of_the_path_leads_back_to_the_stream(solver: str, strength: float) -> None:
    """v = x_1 - x_0 from any time of the straight path (eq. 1-2)."""

    def straight(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        return {name: DATA[name] - NOISE[name] for name in x_t}

    found = sampled(Start(DATA, strength), straight, solver=solver, guidance=1.0)
    for name, tokens in found.items():
        torch.testing.assert_close(tokens, DATA[name])


@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_kept_tokens_are_the_stream_s_and_on_its_path_before(strength: float) -> None:
    seen = []

    def head(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        seen.append((1 - t[0].item(), x_t["patches"]))
        return curved(x_t, t, condition)

    found = sampled(Start(DATA, strength, {"patches": ODD}), head, guidance=1.0)
    assert torch.equal(found["patches"][:, ODD], DATA["patches"][:, ODD])
    assert not torch.isclose(found["patches"][:, ~ODD], DATA["patches"][:, ~ODD]).any()
    assert not torch.isclose(found["cls"], DATA["cls"]).any()
    assert len(seen) == {1.0: 5, 0.7: 4}[strength]
    for level, tokens in seen:
        path = level * NOISE["patches"] + (1 - level) * DATA["patches"]
        torch.testing.assert_close(tokens[:, ODD], path[:, ODD])


def test_masks_may_differ_between_samples_and_a_stream_may_serve_all() -> None:
    keep = torch.stack([ODD, ~ODD])
    found = sampled(Start(DATA, 1.0, {"patches": keep}))
    assert torch.equal(found["patches"][keep], DATA["patches"][keep])
    one = {name: tokens[:1] for name, tokens in DATA.items()}
    shared = sampled(Start(one, 0.5))
    assert torch.equal(shared["cls"][0], sampled(Start(DATA, 0.5))["cls"][0])


def test_strength_is_a_share_of_the_steps_before_the_shift() -> None:
    assert noise_levels(4, strength=0.5) == [0.5, 0.25, 0.0]
    assert noise_levels(4, strength=0.6) == [0.6, 0.5, 0.25, 0.0]
    assert noise_levels(4, 3.0, 0.5) == noise_levels(4, 3.0)[2:]
    assert noise_levels(4, strength=0.0) == [0.0]
    flow, levels = FlowConfig(shift=3.0), []

    def head(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        levels.append(1 - t[0].item())
        return curved(x_t, t, condition)

    sampler = SamplerConfig(steps=4, guidance=1.0)
    sample(head, SPEC, CONDITION, flow=flow, sampler=sampler, noise=NOISE, start=Start(DATA, 0.5))
    assert levels == pytest.approx([0.75, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.2}, r"strength must be within 0\.\.1, got 1\.2"),
        ({"strength": float("nan")}, "strength must be within"),
        ({"keep": {"patch": ODD}}, "group 'patch', but the stream has cls, patches"),
        ({"keep": {"patches": ODD[:2]}}, r"must be bool \(6,\) or \(2, 6\), got torch.bool \(2,\)"),
        ({"keep": {"patches": ODD.float()}}, "got torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Start(DATA, **options)


def test_a_start_for_another_batch_or_layout_is_refused() -> None:
    three = {name: torch.cat([tokens, tokens[:1]]) for name, tokens in DATA.items()}
    with pytest.raises(ValueError, match="a start of 3 samples cannot serve a batch of 2"):
        sampled(Start(three))
    with pytest.raises(ValueError, match="test"):
        sampled(Start({"cls": DATA["cls"]}))


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    path = stubs.checkpoint(tmp_path / "stub.safetensors")
    return build("stub", weights=path, registry=stubs.registry())


def test_align_edits_a_stream_and_keeps_tokens_after_projection(pipeline: Pipeline) -> None:
    prompts = ["a mug", "a red chair"]
    plain = pipeline.align(prompts, seed=1)
    start = pipeline.align(prompts, seed=7)
    name = pipeline.stream.names[-1]
    mask = torch.arange(start[name].shape[1]) % 2 == 0
    whole = pipeline.align(prompts, seed=1, start=start)
    none = pipeline.align(prompts, seed=1, start=start, strength=0.0)
    some = pipeline.align(prompts, seed=1, start=start, strength=0.5, keep={name: mask})
    for group in pipeline.stream.names:
        assert torch.equal(whole[group], plain[group])
        assert torch.equal(none[group], start[group])
    assert torch.equal(some[name][:, mask], start[name][:, mask])
    assert not torch.isclose(some[name][:, ~mask], start[name][:, ~mask]).all()


def test_align_counts_the_steps_that_it_takes(pipeline: Pipeline) -> None:
    seen: list[Progress] = []
    start = pipeline.align("a mug")
    pipeline.align("a mug", start=start, strength=0.5, num_inference_steps=4, progress=seen.append)
    assert [(p.step, p.total) for p in seen if p.stage == "alignment"] == [(1, 2), (2, 2)]


@pytest.mark.parametrize("options", [{"strength": 0.5}, {"keep": {}}])
def test_strength_and_keep_need_a_stream_to_start_from(pipeline: Pipeline, options: dict) -> None:
    with pytest.raises(ValueError, match="need a stream to start from"):
        pipeline.align("a mug", **options)
