"""Speed of the aligner, each next to what it replaces, in one run.

`pytest benchmarks/test_aligner.py`: read the ratio inside a group, not the absolute times.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modalign import FlowConfig, Pipeline, Prompt, SamplerConfig, installed
from modalign.models.dit import TokenStreamDiT
from modalign.sampling import sample

RECIPE = installed().get("recipes", "gap3d-mini")
STREAM = installed().get("encoders", RECIPE.encoder).stream
CAPTION = "a tall red mug with a blue handle, and its handle is on the side"


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vlm() -> Any:
    return installed().get("vlms", RECIPE.vlm).build(weights="random")


@pytest.mark.benchmark(group="soft tokens, forward and backward, 32 prompts")
@pytest.mark.parametrize("path", ["read", "read_plain"])
def test_prefix_without_autograd_against_plain(benchmark: Any, vlm: Any, path: str) -> None:
    soft = torch.randn(1, RECIPE.num_soft_tokens, vlm.hidden_dim, requires_grad=True)
    batch = vlm.prepare([Prompt(f"{CAPTION} {k}") for k in range(32)])

    def step() -> None:
        soft.grad = None
        getattr(vlm, path)(batch, soft).hidden.square().mean().backward()

    benchmark.pedantic(step, rounds=5, warmup_rounds=1)
    assert soft.grad is not None


@pytest.fixture(scope="module")
def head() -> TokenStreamDiT:
    return TokenStreamDiT(STREAM, RECIPE.head, 192).eval()


@pytest.mark.benchmark(group="25 guided steps, 4 samples")
@pytest.mark.parametrize("prepared", [True, False], ids=["condition once", "condition every step"])
def test_condition_once_against_every_step(
    benchmark: Any, head: TokenStreamDiT, prepared: bool
) -> None:
    condition = torch.randn(4, RECIPE.num_soft_tokens, 192)
    network: Any = head if prepared else lambda x, t, c: head(x, t, c)
    sampler = SamplerConfig(steps=25, guidance=3.0)

    def run() -> Any:
        with torch.no_grad():
            generators = [torch.Generator().manual_seed(k) for k in range(4)]
            return sample(
                network, STREAM, condition, flow=FlowConfig(), sampler=sampler,
                generators=generators,
            )  # fmt: skip

    stream = benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    STREAM.check(stream)


@pytest.mark.benchmark(group="a training step of the head, 16 samples")
def test_training_step(benchmark: Any, head: TokenStreamDiT) -> None:
    spec = installed().get("objectives", RECIPE.objective.name)
    objective = spec.build(RECIPE, STREAM, **RECIPE.objective.options)
    target = STREAM.split(torch.randn(16, STREAM.num_tokens, STREAM.groups[0].dim))
    condition = torch.randn(16, RECIPE.num_soft_tokens, 192)

    def step() -> None:
        generator = torch.Generator().manual_seed(0)
        objective(head, condition, target, generator=generator)["loss"].backward()

    benchmark.pedantic(step, rounds=5, warmup_rounds=1)


def test_main_job(benchmark: Any) -> None:
    """A sentence to a mesh with the shipped weights, everything loaded."""
    import modalign

    pipeline: Pipeline = modalign.build("gap3d-mini")
    (asset,) = benchmark.pedantic(
        pipeline.generate, args=("a red mug with a blue handle",), rounds=3, warmup_rounds=1
    )
    assert len(asset.faces)
