"""Names become objects only when they fit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from modalign import (
    BuildError,
    GeneratorSpec,
    RegistryError,
    SpaceMap,
    TokenStreamSpec,
    WeightsError,
    build,
    installed,
)
from modalign.checkpoint import load_checkpoint, save_checkpoint
from modalign.fitting import fit
from modalign.objectives import flow_matching
from modalign.recipes.gap3d import GAP3D
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
    cpu = torch.device("cpu")
    assert asked == [{"weights": "random", "device": cpu, "dtype": torch.float32}]


class Decoders:
    """Decoders of three spaces: the head's, one that a map leads to, and one out of reach."""

    built: list[str]

    def __init__(self, *names: str, requires: tuple[str, ...] = ()) -> None:
        self.names, self.built, self.requires = names, [], requires

    @stubs.hookimpl
    def modalign_generators(self):
        patches = (stubs.STREAM.group("patches"),)
        spaces = {"near": stubs.STREAM.space, "far": OTHER.space, "foreign": "foreign/affine@28"}
        return [
            GeneratorSpec(
                name=name,
                build=partial(self.build, name),
                accepts=TokenStreamSpec(space=spaces[name], groups=patches),
                produces="picture",
                decodes=True,
                requires=self.requires,
            )
            for name in self.names
        ]

    @stubs.hookimpl
    def modalign_space_maps(self):
        def negated(stream):
            return {name: -tokens for name, tokens in stream.items()}

        ends = {"source_stream": stubs.STREAM, "target_stream": OTHER}
        return [SpaceMap(name="negated", build=stubs.giving((negated, negated)), **ends)]

    def build(self, name, **options):
        self.built.append(name)
        cpu = torch.device("cpu")
        assert options == {"weights": "random", "device": cpu, "dtype": torch.float32}
        return stubs.Painter()


@pytest.mark.parametrize(
    ("names", "chosen", "sign"),
    [(["far", "foreign", "near"], "near", 1), (["foreign", "far"], "far", -1)],
)
def test_streams_are_shown_by_the_nearest_decoder_which_is_built_on_first_use(
    names: list[str], chosen: str, sign: int
) -> None:
    """Groups that the decoder does not read are dropped, and maps are gone through."""
    decoders = Decoders(*names)
    pipeline = build("stub", weights="random", registry=stubs.registry(more=[decoders]))
    stream = pipeline.align(["a mug", "a chair"])
    assert decoders.built == []
    pictures = pipeline.preview(stream)
    expected = stubs.Painter().generate({"patches": sign * stream["patches"]}, seed=0)
    assert [p.pixels.tolist() for p in pictures] == [p.pixels.tolist() for p in expected]
    pipeline.preview(stream)
    assert decoders.built == [chosen]


def test_a_space_that_nothing_decodes_says_which_would() -> None:
    """A generator of meshes that draws no noise is no decoder to look with."""
    known = stubs.registry(more=[Decoders("foreign")], generator={"decodes": True})
    pipeline = build("stub", weights="random", registry=known)
    with pytest.raises(
        BuildError,
        match=r"tokens of 'stub/layernorm@28', .*\('foreign' reads 'foreign/affine@28'\)",
    ):
        pipeline.preview(pipeline.align("a mug"))
    bare = build("stub", weights="random", registry=stubs.registry())
    with pytest.raises(BuildError, match="none is installed"):
        bare.preview(bare.align("a mug"))


def test_a_decoder_s_missing_library_is_named() -> None:
    known = stubs.registry(more=[Decoders("near", requires=("no_such_library",))])
    pipeline = build("stub", weights="random", registry=known)
    with pytest.raises(BuildError, match="'near' needs no_such_library: pip install"):
        pipeline.preview(pipeline.align("a mug"))


def test_only_streams_of_the_head_s_layout_are_shown() -> None:
    known = stubs.registry(more=[Decoders("near")])
    pipeline = build("stub", weights="random", registry=known)
    with pytest.raises(ValueError, match="'stub/layernorm@28' has groups"):
        pipeline.preview({"patches": torch.zeros(1, 6, 4)})


def test_parts_live_where_they_are_told_to() -> None:
    """Each builder gets its own device; the meta device stands for another machine's."""
    asked: dict[str, torch.device] = {}

    def recording(kind, made):
        def build_part(**options):
            asked[kind] = options["device"]
            return made()

        return build_part

    known = stubs.registry(
        vlm={"build": recording("vlm", stubs.VLM)},
        encoder={"build": recording("encoder", stubs.Encoder)},
        generator={"build": recording("generator", stubs.Generator)},
    )
    places = {"head": "meta", "generator": "cpu:0"}
    pipeline = build("stub", weights="random", device=places, registry=known)
    assert pipeline.parts.encoder is not None
    assert pipeline.device.type == "meta"
    cpu = torch.device("cpu")
    assert asked == {"vlm": cpu, "encoder": cpu, "generator": torch.device("cpu:0")}
    with pytest.raises(BuildError, match="device= names dit; parts are vlm, encoder, head"):
        build("stub", weights="random", device={"dit": "cpu"}, registry=known)


def test_stage_by_stage_gives_the_same_and_keeps_nothing(tmp_path: Path) -> None:
    """Each part is built for its stage and gone after it; the head lies on the meta device."""
    alive: set[str] = set()
    most: list[set[str]] = []

    class Counted:
        def __del__(self) -> None:
            alive.discard(type(self).__name__)

    def counting(part):
        made = type(part.__name__, (Counted, part), {})

        def build_part(**options):
            alive.add(part.__name__)
            most.append(set(alive))
            return made()

        return build_part

    path = stubs.checkpoint(tmp_path / "stub.safetensors")
    known = stubs.registry(
        vlm={"build": counting(stubs.VLM)}, generator={"build": counting(stubs.Generator)}
    )
    kept = build("stub", weights=path, registry=stubs.registry())
    staged = build("stub", weights=path, stagewise=True, registry=known)
    assert not alive
    assert all(parameter.is_meta for parameter in staged.head.parameters())
    for _ in range(2):
        own, theirs = (p.generate("a mug", seed=3)[0] for p in (kept, staged))
        assert (own.vertices == theirs.vertices).all()
        assert not alive
        assert all(parameter.is_meta for parameter in staged.head.parameters())
    assert all(len(parts) == 1 for parts in most)
    with pytest.raises(BuildError, match="stagewise loads weights each time"):
        build("stub", weights="random", stagewise=True, registry=known)


def test_rows_that_training_added_to_the_word_table_reach_the_vlm(tmp_path: Path) -> None:
    """A converted checkpoint carries them; the builder of the VLM is the one who knows them."""
    seen: list[dict[str, object]] = []

    def building(**options):
        seen.append(options)
        return stubs.VLM()

    known = stubs.registry(vlm={"build": building})
    path = stubs.checkpoint(tmp_path / "stub.safetensors")
    build("stub", weights=path, registry=known)
    assert "token_rows" not in seen[-1]
    checkpoint = load_checkpoint(path)
    rows = torch.ones(3, 8)
    tensors = checkpoint.tensors | {"frozen.token_rows": rows}
    save_checkpoint(path, tensors, checkpoint.recipe, checkpoint.stream)
    pipeline = build("stub", weights=path, registry=known)
    assert seen[-1]["token_rows"].equal(rows)
    assert pipeline.frozen_tensors["frozen.token_rows"].equal(rows)


def test_random_weights_are_drawn_in_their_dtype_and_the_default_is_restored() -> None:
    pipeline = build("stub", weights="random", dtype=torch.bfloat16, registry=stubs.registry())
    assert {t.dtype for t in pipeline.trainable().values()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


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
    registry: Registry = installed()
    recipe = registry.get("recipes", name)
    assert fit(recipe, registry).encoder.name == recipe.encoder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_blip3o_is_built_at_full_size_around_its_encoder() -> None:
    """On the meta device; its stream is what the pooled EVA-CLIP tower makes."""
    recipe = installed().get("recipes", "blip3o")
    with pytest.raises(WeightsError, match=r"'sdxl-eva' .* derive\(generator=None\)"):
        build(recipe, weights="random", device="meta")
    pipeline = build(recipe.derive(generator=None), weights="random", device="meta")
    pixels = torch.zeros(1, 3, 448, 448)
    pipeline.stream.check(pipeline.parts.encoder.encode(pixels))
    assert pipeline.stream.num_tokens == 64


AFFINE = TokenStreamSpec(
    space="dinov2-vitl14-reg/affine-layernorm@518",
    groups=installed().get("encoders", "dinov2-vitl14-reg").stream.groups,
)


class LastHiddenState:
    """A generator that reads transformers' `last_hidden_state`, as others of TRELLIS's class do."""

    @stubs.hookimpl
    def modalign_generators(self):
        return [GeneratorSpec(name="affine-3d", build=stubs.refusing, accepts=AFFINE)]


def everything(*more: object) -> Registry:
    """What is installed and `more`, in one registry."""
    catalogue = installed().catalogue

    class Installed:
        @stubs.hookimpl
        def modalign_vlms(self):
            return list(catalogue.vlms.values())

        @stubs.hookimpl
        def modalign_encoders(self):
            return list(catalogue.encoders.values())

        @stubs.hookimpl
        def modalign_objectives(self):
            return list(catalogue.objectives.values())

        @stubs.hookimpl
        def modalign_space_maps(self):
            return list(catalogue.space_maps.values())

    return Registry([("installed", Installed()), *(("more", plugin) for plugin in more)])


def test_a_mapper_of_trellis_s_tokens_also_drives_readers_of_last_hidden_state() -> None:
    """The encoder's own gain and bias lie between the two, and nothing is lost."""
    chosen = fit(GAP3D.derive(generator="affine-3d"), everything(LastHiddenState()))
    assert chosen.route is not None
    assert [space_map.name for space_map, _ in chosen.route.maps] == ["dinov2-vitl14-reg-affine"]
    assert not chosen.route.one_way


@pytest.mark.parametrize("encoder", ["dinov2-vitl14", "dinov2-vitg14-reg", "dinov3-vitl16"])
def test_other_networks_of_the_same_family_are_refused_with_the_reason(encoder: str) -> None:
    """Without registers, or as another size or generation: other weights, whatever the shape."""
    recipe = GAP3D.derive(encoder=encoder, generator="affine-3d")
    with pytest.raises(BuildError, match=f"{encoder!r} and 'dinov2-vitl14-reg' are different net"):
        fit(recipe, everything(LastHiddenState()))


def test_options_of_the_vlm_reach_its_builder() -> None:
    seen = []

    def building(**options):
        seen.append(options)
        return stubs.VLM()

    recipe = stubs.RECIPE.derive(vlm_options={"positions": "native"})
    build(recipe, weights="random", registry=stubs.registry(vlm={"build": building}))
    assert seen[0]["positions"] == "native"


def test_a_vlm_of_any_model_tells_its_numbers_when_it_is_built() -> None:
    class AnyModel(stubs.VLM):
        max_positions = 16

    changes = {"build": stubs.giving(AnyModel()), "hidden_dim": None, "max_positions": None}
    known = stubs.registry(vlm=changes)
    assert build("stub", weights="random", registry=known).soft_tokens.shape == (1, 3, 8)
    with pytest.raises(BuildError, match="16 soft tokens, but 'stub-vlm' reads at most 16 pos"):
        build(stubs.RECIPE.derive(num_soft_tokens=16), weights="random", registry=known)


def test_an_adapter_that_cannot_read_as_asked_is_refused() -> None:
    recipe = stubs.RECIPE.derive(reading={"layers": (1,)})
    with pytest.raises(BuildError, match=r"the adapter of 'stub-vlm' has no read_layers\(\)"):
        build(recipe, weights="random", registry=stubs.registry())
    known = stubs.registry(vlm={"build": stubs.giving(stubs.DeepVLM())})
    with pytest.raises(BuildError, match="reads layer 3, but 'stub-vlm' has layers 0 to 2"):
        build(recipe.derive(reading={"layers": (1, 3)}), weights="random", registry=known)
