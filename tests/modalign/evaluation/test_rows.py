"""Which recipes are compared, and when their numbers are still valid."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modalign import ModalignError, Recipe, Registry, WeightsError, hookimpl, installed
from modalign.evaluation import assembled, fingerprint, relatives, rows

OURS: Recipe = installed().get("recipes", "gap3d-mini")


class Recipes:
    @hookimpl
    def modalign_recipes(self) -> list[Recipe]:
        changes: list[dict[str, Any]] = [
            {"name": "ours-stage1"},
            {"name": "ours-clip", "encoder": "eva-clip-e14-plus"},
            {"name": "oursome"},
            {"name": "ours-big"},
            {"name": "ours"},
        ]
        return [OURS.derive(**change) for change in changes]


REGISTRY = Registry([("recipes", Recipes())])


def test_relatives_extend_the_name_and_share_the_encoder() -> None:
    ours = REGISTRY.get("recipes", "ours")
    assert [r.name for r in relatives(ours, REGISTRY)] == ["ours", "ours-big", "ours-stage1"]
    big = REGISTRY.get("recipes", "ours-big")
    assert relatives(big, REGISTRY) == [big]


def test_variants_without_weights_are_left_out_but_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(recipe: Recipe, weights: str, registry: Registry) -> str:
        if recipe.name == "ours-big":
            raise WeightsError("no file")
        return f"pipeline of {recipe.name} with {recipe.generator}"

    monkeypatch.setattr(rows, "build", build)
    found = assembled(REGISTRY.get("recipes", "ours"), REGISTRY)
    assert list(found.pipelines) == ["ours", "ours-stage1"]
    assert found.pipelines["ours"] == "pipeline of ours with trellis-mini"
    assert found.missing == {"ours-big": "no file"}
    with pytest.raises(WeightsError, match="no file"):
        assembled(REGISTRY.get("recipes", "ours-big"), REGISTRY)
    found = assembled(REGISTRY.get("recipes", "ours"), REGISTRY, generator=False)
    assert found.pipelines["ours"] == "pipeline of ours with None"


def test_checkpoints_of_ones_own_take_the_place_of_those_that_ship(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(recipe: Recipe, weights: str | Path, registry: Registry) -> str:
        if recipe.name == "ours-big" and weights == "pretrained":
            raise WeightsError("none ships")
        if weights == Path("damaged"):
            raise WeightsError("damaged")
        return f"{recipe.name} from {weights}"

    monkeypatch.setattr(rows, "build", build)
    ours = REGISTRY.get("recipes", "ours")
    found = assembled(ours, REGISTRY, weights={"ours-big": Path("mine"), "ours": Path("run")})
    assert list(found.pipelines.values()) == [
        "ours from run",
        "ours-big from mine",
        "ours-stage1 from pretrained",
    ]
    assert not found.missing
    with pytest.raises(WeightsError, match="damaged"):  # asked for, so not left out
        assembled(ours, REGISTRY, weights={"ours-stage1": Path("damaged")})
    with pytest.raises(ModalignError, match="'other' is not measured here; .* ours, ours-big"):
        assembled(ours, REGISTRY, weights={"other": Path("x")})


def test_a_fingerprint_changes_with_every_tensor_number_and_text() -> None:
    def part(seed: int = 0, steps: int = 5) -> Any:
        torch.manual_seed(seed)
        models = SimpleNamespace(flow=torch.nn.Linear(50, 50))
        return SimpleNamespace(models=models, config={"steps": steps}, other=object())

    assert fingerprint(part(), OURS) == fingerprint(part(), OURS)
    assert fingerprint(object()) == fingerprint(object())
    variants = [
        (part(), OURS),
        (part(seed=1), OURS),
        (part(steps=6), OURS),
        (part(), OURS.derive(sampler={"steps": 3})),
        (part(), OURS, "more"),
    ]
    assert len({fingerprint(*variant) for variant in variants}) == len(variants)
