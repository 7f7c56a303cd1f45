"""Baselines: nearest caption, no condition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modalign import VLMOutput, build
from modalign.evaluation import NearestText, unconditional
from tests.modalign import stubs

TEXTS = ["a red mug", "a blue mug with a handle", "a red chair", "a red chair"]


def test_the_nearest_text_shares_the_rare_words() -> None:
    nearest = NearestText(TEXTS)
    assert nearest(["The blue MUG!", "red mug", "a handle"]) == [1, 0, 1]


def test_a_text_is_nearest_to_itself_and_ties_go_to_the_first() -> None:
    assert NearestText(TEXTS)(TEXTS) == [0, 1, 2, 2]
    assert NearestText(TEXTS)(["unheard words only"]) == [0]


def test_unconditional_is_align_with_a_condition_of_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stubs.checkpoint(tmp_path / "stub.safetensors")
    pipeline = build("stub", weights=path, registry=stubs.registry())
    found = unconditional(pipeline, [3, 4])
    asked = pipeline.align(["a mug", "a chair"], seed=3)

    def zeros(prompts: list[str]) -> VLMOutput:
        return VLMOutput(torch.zeros(len(prompts), *pipeline.soft_tokens.shape[1:]))

    monkeypatch.setattr(pipeline, "condition", zeros)
    for name, tokens in pipeline.align(["a mug", "a chair"], seed=3).items():
        torch.testing.assert_close(found[name], tokens, atol=1e-4, rtol=1e-4)
        assert not asked[name].equal(tokens)
    assert not found["cls"][0].equal(found["cls"][1])
