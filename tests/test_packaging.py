"""The distribution: what is listed is what is there, and strangers plug in."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from modalign import TokenStreamSpec, build, installed

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_package_list_equals_the_tree() -> None:
    homes = {"modalign": ROOT / "modalign", "modalign_plugins": ROOT / "plugins"}
    found = []
    for name, home in homes.items():
        for marker in home.rglob("__init__.py"):
            found.append(".".join((name, *marker.parent.relative_to(home).parts)))
    assert PROJECT["tool"]["setuptools"]["packages"] == sorted(found)


def test_every_plugin_module_with_a_hook_has_an_entry_point() -> None:
    points = set(PROJECT["project"]["entry-points"]["modalign"].values())
    hooked = set()
    for name, home in (("modalign", ROOT / "modalign"), ("modalign_plugins", ROOT / "plugins")):
        for path in home.rglob("*.py"):
            if "\n@hookimpl\n" in path.read_text():
                parts = path.relative_to(home).with_suffix("").parts
                hooked.add(".".join((name, *(part for part in parts if part != "__init__"))))
    assert points == hooked


def test_every_installed_plugin_loads() -> None:
    assert installed().failures == {}


def test_the_shipped_weights_fit_their_budget() -> None:
    files = [path for path in (ROOT / "plugins" / "weights").rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    assert total <= 40e6, f"{total / 1e6:.1f} MB of weights; the package ships at most 40 MB"


def test_no_lock_file_names_a_registry() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert "://" not in line
    assert not list(ROOT.glob("*.lock"))


def test_an_outside_distribution_is_found() -> None:
    """`examples/modalign_dinov3` is installed by the test command, as anybody's plugin would be."""
    assert importlib.metadata.version("modalign-dinov3")
    registry = installed()
    spec = registry.get("encoders", "dinov3-vits16plus")
    assert registry.owners["encoders", "dinov3-vits16plus"] == "modalign-dinov3:dinov3"
    assert isinstance(spec.stream, TokenStreamSpec)


def test_the_outside_encoder_keeps_the_contract() -> None:
    from modalign.testing import check_encoder

    check_encoder(installed().get("encoders", "dinov3-vits16plus"))


def test_the_outside_encoder_reads_a_file_of_weights(tmp_path: Path) -> None:
    """As every built-in does; anything else than a file of weights is refused, not random."""
    build_encoder = installed().get("encoders", "dinov3-vits16plus").build
    model = timm.create_model("vit_small_plus_patch16_dinov3")
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    read = build_encoder(weights=tmp_path / "own.safetensors").model.state_dict()
    assert len(read) > 100
    for name, tensor in read.items():
        assert torch.equal(tensor, model.state_dict()[name])
    with pytest.raises(FileNotFoundError):
        build_encoder(weights="vits")


@pytest.mark.parametrize(
    "name",
    [
        recipe.name
        for recipe in installed().catalogue.recipes.values()
        if recipe.checkpoint is not None
    ],
)
def test_shipped_weights_say_what_they_are_and_know_their_encoder(name: str) -> None:
    """The fingerprint is of the encoder that ships; one with other weights would be refused."""
    pipeline = build(installed().get("recipes", name).derive(generator=None))
    said = pipeline.extra
    assert said["parts"]["encoders"]["name"] == pipeline.recipe.encoder
    assert "{prompt}" in said["prompt_template"]
    assert said["training"]["commit"]
    assert set(said["statistics"]) == set(said["fingerprint"]) == set(pipeline.stream.names)
    pipeline.stream.check(pipeline.parts.encoder.encode(torch.zeros(1, 3, 112, 112)))
