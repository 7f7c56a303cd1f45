"""Names become objects only when they fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modalign import (
    BuildError,
    RegistryError,
    SpaceMap,
    TokenStreamSpec,
    WeightsError,
    build,
    installed,
)
from modalign.objectives import flow_matching
from modalign.registry import Registry
from tests.modalign import stubs

OTHER = TokenStreamSpec(space="other/affine@28", groups=stubs.STREAM.groups)


def test_all_misfits_are_listed_at_once_and_nothing_is_built() -> None:
    """An unknown encoder, a missing library, too many soft tokens, an unknown objective."""
    recipe = stubs.RECIPE.derive(
        encoder="stub-encodr", objective={"name": "flow"}, num_soft_tokens=16
    )
    known = stubs.registry(
        recipe,
        vlm={"build": stubs.refusing, "requires": ("no_such_library",)},
        generator={"build": stubs.refusing},
    )
    with pytest.raises(BuildError) as error:
        build("stub", weights="random", registry=known)
    for part in (
        "unknown encoder 'stub-encodr'. Did you mean 'stub-encoder'?",
        "unknown objective 'flow'",
        "'stub-vlm' needs no_such_library: pip install no_such_library",
        "appends 16 soft tokens, but 'stub-vlm' reads at most 16 positions; lower num_soft_tokens",
    ):
        assert part in str(error.value)


def test_another_space_of_the_same_shape_is_refused_before_anything_is_loaded() -> None:
    known = stubs.registry(
        vlm={"build": stubs.refusing}, generator={"accepts": OTHER, "build": stubs.refusing}
    )
    with pytest.raises(
        BuildError, match=r"'stub/layernorm@28'.*'other/affine@28': .*different networks"
    ):
        build("stub", registry=known)


def test_a_registered_map_joins_two_spaces() -> None:
    """The generator then reads what the map makes of the head's tokens."""
    seen = []

    class Recording(stubs.Generator):
        accepts = OTHER

        def generate(self, stream, **options):
            seen.append(stream)
            return super().generate(stream, **options)

    def twice(stream):
        return {name: 2 * tokens for name, tokens in stream.items()}

    def half(stream):
        return {name: tokens / 2 for name, tokens in stream.items()}

    asked = []

    def maps(**options):
        asked.append(options)
        return half, twice

    ends = {"source_stream": OTHER, "target_stream": stubs.STREAM}
    joined = SpaceMap(name="half", build=maps, **ends)

    class Maps:
        @stubs.hookimpl
        def modalign_space_maps(self):
            return [joined]

    known = stubs.registry(
        more=[Maps()], generator={"accepts": OTHER, "build": stubs.giving(Recording())}
    )
    pipeline = build("stub", weights="random", registry=known)
    pipeline.generate("a mug")
    stream = pipeline.align("a mug")
    assert all(seen[0][name].equal(2 * stream[name]) for name in stream)
    assert asked == [{"weights": "random", "device": "cpu", "dtype": torch.float32}]


def test_an_unknown_recipe_offers_the_closest() -> None:
    with pytest.raises(RegistryError, match="unknown recipe 'stab'. Did you mean 'stub'"):
        build("stab", registry=stubs.registry())


def test_a_recipe_value_needs_no_registration() -> None:
    recipe = stubs.RECIPE.derive(name="mine", num_soft_tokens=2)
    pipeline = build(recipe, weights="random", registry=stubs.registry())
    assert pipeline.recipe == recipe
    assert pipeline.soft_tokens.shape == (1, 2, 8)


def test_an_objective_of_another_head_is_refused() -> None:
    (spec,) = flow_matching.modalign_objectives()

    class Other:
        @stubs.hookimpl
        def modalign_objectives(self):
            return [stubs.replace(spec, name="cosine", head="projector")]

    known = stubs.registry(stubs.RECIPE.derive(objective={"name": "cosine"}), more=[Other()])
    with pytest.raises(BuildError, match="'cosine' trains a head of kind 'projector'"):
        build("stub", registry=known)


def test_every_part_s_missing_weights_are_named() -> None:
    def missing(what):
        def attempt(**options):
            raise WeightsError(f"no {what}")

        return attempt

    known = stubs.registry(vlm={"build": missing("words")}, generator={"build": missing("shapes")})
    with pytest.raises(WeightsError, match="no words; no shapes"):
        build("stub", weights="untrained", registry=known)


def test_a_checkpoint_comes_back_in_the_pipeline(tmp_path: Path) -> None:
    known = stubs.registry()
    path = stubs.checkpoint(tmp_path / "stub.safetensors")
    one, two = (build("stub", weights=path, registry=known) for _ in range(2))
    for name, tensor in one.trainable().items():
        assert tensor.equal(two.trainable()[name])
        assert tensor.abs().max() < 1  # not the N(0, 1) of a fresh start


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    path = stubs.checkpoint(tmp_path / "stub.safetensors")
    longer = stubs.RECIPE.derive(num_soft_tokens=5)
    with pytest.raises(WeightsError, match=r"soft_tokens is \(1, 3, 8\), expected \(1, 5, 8\)"):
        build(longer, weights=path, registry=stubs.registry())


def test_missing_checkpoints_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint at .*nowhere.*or 'pretrained'"):
        build("stub", weights=tmp_path / "nowhere", registry=stubs.registry())
    with pytest.raises(WeightsError, match="no trained weights are published for recipe 'stub'"):
        build("stub", registry=stubs.registry())
    ships = stubs.RECIPE.derive(checkpoint="modalign/nothing.safetensors")
    with pytest.raises(WeightsError, match="missing from this installation; reinstall"):
        build(ships, registry=stubs.registry())


def test_the_full_size_builds_offline_without_memory() -> None:
    """1,357 M in the head and the paper's 1.36 B in all: see `gap3d.py` on its 24 blocks."""
    pipeline = build("gap3d", weights="random", device="meta")
    assert pipeline.device == torch.device("meta")
    trained = pipeline.trainable()
    assert sum(tensor.numel() for tensor in trained.values()) == 1_363_318_176
    assert trained["soft_tokens"].shape == (1, 64, 2048)


def test_the_full_size_names_what_it_misses_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="no trained weights are published for recipe 'gap3d'"):
        build("gap3d")
    with pytest.raises(WeightsError) as error:
        build("gap3d", weights="untrained")
    message = str(error.value)
    for repository in ("Qwen/Qwen2.5-VL-3B-Instruct", "microsoft/TRELLIS-image-large"):
        assert f"hf download {repository}" in message
    assert "ckpts/slat_flow_img_dit_L_64l8p2_fp16.safetensors" in message


@pytest.mark.parametrize("name", sorted(installed().catalogue.recipes))
def test_registered_recipes_fit(name: str) -> None:
    from modalign.assembly import fit

    registry: Registry = installed()
    recipe = registry.get("recipes", name)
    assert fit(recipe, registry).encoder.name == recipe.encoder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_blip3o_is_built_at_full_size_around_its_encoder() -> None:
    """On the meta device; its stream is what the pooled EVA-CLIP tower makes."""
    pipeline = build("blip3o", weights="random", device="meta")
    pixels = torch.zeros(1, 3, 448, 448)
    pipeline.stream.check(pipeline.parts.encoder.encode(pixels))
    assert pipeline.stream.num_tokens == 64
