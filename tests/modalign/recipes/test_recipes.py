"""The numbers of the published recipes, from the released code and the papers."""

from __future__ import annotations

import pytest

from modalign.recipe import Recipe
from modalign.recipes import blip3o, gap3d
from modalign.registry import Registry

REGISTRY = Registry([("gap3d", gap3d), ("blip3o", blip3o)])


@pytest.mark.parametrize("name", ["gap3d", "gap3d-finetune", "blip3o"])
def test_recipes_are_registered_under_their_names(name: str) -> None:
    recipe: Recipe = REGISTRY.get("recipes", name)
    assert recipe.name == name
    assert recipe.summary
    assert recipe.reference.startswith("arXiv:")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_gap3d_is_trained_as_released() -> None:
    recipe = gap3d.GAP3D
    assert (recipe.head.hidden_size, recipe.head.depth, recipe.head.num_heads) == (1792, 24, 28)
    assert sum(recipe.objective.options["weights"].values()) == pytest.approx(1)
    assert (recipe.flow.prediction, recipe.flow.grid, recipe.flow.shift) == ("velocity", 1000, 1.0)
    assert (recipe.sampler.steps, recipe.sampler.guidance) == (50, 3.0)
    assert (recipe.training.lr, recipe.training.min_lr) == (2.8e-4, 1e-5)
    assert recipe.training.grad_clip == 1.0


def test_the_second_stage_changes_training_only() -> None:
    first, second = gap3d.GAP3D.model_dump(), gap3d.GAP3D_FINETUNE.model_dump()
    changed = {field for field in first if first[field] != second[field]}
    assert changed == {"name", "summary", "training"}
    stage = gap3d.GAP3D_FINETUNE.training
    assert (stage.lr, stage.min_lr, stage.grad_clip, stage.warmup) == (5.6e-4, 0.0, None, 0.003)
    assert (stage.epochs, stage.batch_size, stage.starts_from) == (1000, 2048, "gap3d")
    assert stage.precision == gap3d.GAP3D.training.precision == "bfloat16"
