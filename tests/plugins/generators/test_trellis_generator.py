"""From a stream to meshes: seeds, independence, and failures that name their stage."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from modalign_plugins.generators.trellis import (
    Trellis,
    formats,
    generator,
    loader,
    modalign_generators,
    models,
)
from modalign_plugins.generators.trellis.sampler import averaged

from modalign import (
    GenerationError,
    GeneratorSpec,
    ModalignError,
    Progress,
    WeightsError,
    installed,
    meshing,
)
from modalign.rendering.cameras import sphere
from modalign.testing import check_generator

from .trellis_tiny import MODELS, STREAM, write_pipeline


def tokens(batch=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.randn(batch, group.num_tokens, group.dim, generator=draw)
        for group in STREAM.groups
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    write_pipeline(folder)
    return folder


@pytest.fixture
def trellis(folder):
    models, config = loader.load_pipeline(folder, device="cpu", dtype=torch.float32)
    return Trellis(models, config, STREAM)


def same(left, right):
    return np.array_equal(left.vertices, right.vertices) and np.array_equal(left.faces, right.faces)


def test_a_mesh_has_colours_and_uses_all_its_vertices(trellis):
    mesh, _ = trellis.generate(tokens(), seed=0)
    assert len(mesh.faces) > 100
    assert np.array_equal(np.unique(mesh.faces), np.arange(len(mesh.vertices)))
    assert 0 <= mesh.vertex_colors.min() < mesh.vertex_colors.max() <= 1
    assert np.abs(mesh.vertices).max() <= 0.55


def test_element_k_depends_on_its_tokens_and_seed_plus_k_alone(trellis):
    stream = tokens()
    first, second = trellis.generate(stream, seed=5)
    (alone,) = trellis.generate({name: x[1:] for name, x in stream.items()}, seed=6)
    assert same(alone, second)
    assert not same(first, second)


def test_the_seed_repeats_and_changes_the_mesh_and_leaves_the_global_generator(trellis):
    stream = tokens(batch=1)
    state = torch.get_rng_state()
    (first,), (again,), (other,) = (trellis.generate(stream, seed=seed) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_tokens_and_guidance_change_the_mesh(trellis):
    stream = tokens(batch=1)
    (mesh,) = trellis.generate(stream, seed=0)
    (other,) = trellis.generate(tokens(batch=1, seed=1), seed=0)
    (unguided,) = trellis.generate(stream, seed=0, guidance=0)
    assert not same(mesh, other)
    assert not same(mesh, unguided)


def test_progress_is_reported_for_every_step_of_every_stage(trellis):
    seen = []
    trellis.generate(tokens(batch=1), seed=0, steps=2, progress=seen.append)
    assert seen == [
        *(Progress("sparse structure", step, 2) for step in (1, 2)),
        *(Progress("structured latent", step, 2) for step in (1, 2)),
        Progress("mesh", 1, 1),
    ]


def test_progress_of_several_elements_counts_them_all(trellis):
    seen = []
    trellis.generate(tokens(batch=2), seed=0, steps=2, progress=seen.append)
    assert seen == [
        *(Progress("sparse structure", step, 4) for step in (1, 2, 3, 4)),
        *(Progress("structured latent", step, 4) for step in (1, 2, 3, 4)),
        *(Progress("mesh", step, 2) for step in (1, 2)),
    ]


def test_one_condition_given_twice_is_that_condition(trellis):
    condition = STREAM.pack(tokens(batch=1))
    once = trellis.generate_one(condition, seed=0)
    for options in ({}, {"combine": averaged}):
        twice = trellis.generate_one(condition.repeat(2, 1, 1), seed=0, **options)
        np.testing.assert_allclose(twice.vertices, once.vertices, atol=1e-4)


@pytest.mark.parametrize("mode", ["stochastic", "multidiffusion"])
def test_a_mode_makes_one_object_of_all_elements(trellis, mode):
    stream = tokens(batch=1)
    (once,) = trellis.generate(stream, seed=0)
    views = {name: x.repeat(3, 1, 1) for name, x in stream.items()}
    (same_view,) = trellis.generate(views, seed=0, mode=mode)
    np.testing.assert_allclose(same_view.vertices, once.vertices, atol=1e-4)
    (other,) = trellis.generate(tokens(batch=3), seed=0, mode=mode)
    assert not same(other, once)


def test_an_unknown_mode_is_refused(trellis):
    with pytest.raises(ValueError, match="unknown mode 'all'; known: stochastic, multidiffusion"):
        trellis.generate(tokens(), seed=0, mode="all")


def test_noise_is_drawn_structure_first_from_one_generator_on_the_cpu(trellis, monkeypatch):
    """The reference seeds once and draws the grid, then one row per voxel."""
    starts = []
    sample = Trellis._sample

    def record(self, stage, denoiser, noise, *rest):
        starts.append(noise)
        return sample(self, stage, denoiser, noise, *rest)

    monkeypatch.setattr(Trellis, "_sample", record)
    trellis.generate(tokens(batch=1), seed=3)
    draw = torch.Generator().manual_seed(3)
    assert torch.equal(starts[0], torch.randn(1, 4, 2, 2, 2, generator=draw))
    assert torch.equal(starts[1], torch.randn(len(starts[1]), 4, generator=draw))


def one_at_a_time(monkeypatch, trellis):
    """No network fits beside another; returns the roles in the order in which they are loaded."""
    monkeypatch.setattr(models, "KEPT_BYTES", 0)
    loads = []
    find = trellis.models._find

    def watched(role):
        stored = find(role)

        def load():
            assert trellis.models.loaded == ()
            loads.append(role)
            return stored.load()

        return models.StoredNetwork(stored.num_bytes, load)

    trellis.models._find = watched
    trellis.models._stored.clear()
    return loads


def test_stages_are_loaded_once_for_all_elements_and_change_no_bit(trellis, monkeypatch):
    """Each element must be what it is when it is made alone, with every network kept."""
    stream = tokens(batch=3)
    alone = [
        trellis.generate({name: x[k : k + 1] for name, x in stream.items()}, seed=4 + k)[0]
        for k in range(3)
    ]
    assert len(trellis.models.loaded) == 4
    trellis.models._loaded.clear()
    loads = one_at_a_time(monkeypatch, trellis)
    together = trellis.generate(stream, seed=4)
    assert loads == list(MODELS)[:4]
    assert trellis.models.loaded == ("slat_decoder_mesh",)
    for mesh, expected in zip(together, alone, strict=True):
        assert same(mesh, expected)
        assert np.array_equal(mesh.vertex_colors, expected.vertex_colors)


def test_small_networks_are_read_once(trellis, monkeypatch):
    first = trellis.generate(tokens(batch=1), seed=0)
    monkeypatch.setattr(loader, "_opened", None)  # reading again would fail
    assert same(trellis.generate(tokens(batch=1), seed=0)[0], first[0])


def equal_records(one, other):
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs)


def test_a_latent_is_decoded_to_every_format(trellis):
    (latent,) = trellis.latents(tokens(batch=1), seed=0)
    with torch.no_grad():
        decoder = trellis.models.gaussian_decoder
        (expected,) = decoder.gaussians(decoder(latent))
        decoder = trellis.models.radiance_field_decoder
        (field,) = decoder.fields(decoder(latent))
    (splats,) = trellis.generate(tokens(batch=1), seed=0, format="gaussians")
    assert len(splats.xyz) == 3 * len(latent.feats)
    assert equal_records(splats, expected)
    (made,) = trellis.generate(tokens(batch=1), seed=0, format="radiance-field")
    assert equal_records(made, field)
    (mesh,) = trellis.assets([latent])
    assert same(mesh, trellis.generate(tokens(batch=1), seed=0)[0])


def refuse_sampling(trellis, monkeypatch):
    monkeypatch.setattr(trellis, "_sample", None)


def test_an_unknown_format_is_refused(trellis, monkeypatch):
    refuse_sampling(trellis, monkeypatch)
    with pytest.raises(ValueError, match="unknown format 'glb'; known: mesh, gaussians"):
        trellis.generate(tokens(), seed=0, format="glb")


def without(folder, tmp_path, *roles):
    """A copy of the pipeline whose pipeline.json lacks these roles."""
    shutil.copytree(folder, tmp_path / "less")
    path = tmp_path / "less" / "pipeline.json"
    content = json.loads(path.read_text())
    for role in roles:
        del content["args"]["models"][role]
    path.write_text(json.dumps(content))
    built = loader.load_pipeline(tmp_path / "less", device="cpu", dtype=torch.float32)
    return Trellis(*built, STREAM)


def test_a_format_without_a_decoder_lists_those_that_are_there(folder, tmp_path, monkeypatch):
    trellis = without(folder, tmp_path, "slat_decoder_gs", "slat_decoder_rf")
    refuse_sampling(trellis, monkeypatch)
    with pytest.raises(GenerationError, match=r"names no slat_decoder_gs; it can make mesh$"):
        trellis.generate(tokens(), seed=0, format="gaussians")


def test_a_pipeline_may_lack_a_mesh_decoder(folder, tmp_path):
    trellis = without(folder, tmp_path, "slat_decoder_mesh")
    (splats,) = trellis.generate(tokens(batch=1), seed=0, format="gaussians")
    assert torch.isfinite(splats.xyz).all()
    with pytest.raises(GenerationError, match="it can make gaussians, radiance-field"):
        trellis.generate(tokens(), seed=0)


def test_a_decoder_whose_file_is_missing_is_named_before_anything_is_sampled(
    folder, tmp_path, monkeypatch
):
    trellis = without(folder, tmp_path)
    (tmp_path / "less" / "ckpts" / "gaussians.safetensors").unlink()
    refuse_sampling(trellis, monkeypatch)
    with pytest.raises(WeightsError, match=r"ckpts/gaussians.safetensors is missing"):
        trellis.generate(tokens(), seed=0, format="gaussians")


def test_a_textured_mesh_without_its_libraries_is_refused_before_sampling(trellis, monkeypatch):
    monkeypatch.setitem(sys.modules, "xatlas", None)
    refuse_sampling(trellis, monkeypatch)
    with pytest.raises(ModalignError, match=r"a texture needs xatlas.*modalign\[mesh\]"):
        trellis.generate(tokens(), seed=0, format="textured-mesh")


def test_a_texture_is_baked_on_the_mesh_from_pictures_of_the_splats(trellis, monkeypatch):
    """Of the same latent, from all around."""
    monkeypatch.setattr(formats, "BAKED_VIEWS", 6)
    monkeypatch.setattr(formats, "BAKED_SIZE", 24)
    given = {}
    monkeypatch.setattr(
        meshing, "textured", lambda *args, **options: given.update(o=(args, options))
    )
    options = {"stream": tokens(batch=1), "seed": 0}
    trellis.generate(**options, format="textured-mesh")
    (mesh, views), _ = given["o"]
    assert same(mesh, trellis.generate(**options)[0])
    (splats,) = trellis.generate(**options, format="gaussians")
    assert len(views) == 6
    for view, camera in zip(views, sphere(6), strict=True):
        np.testing.assert_array_equal(view.camera.extrinsics, camera.extrinsics)
        color, alpha = splats.view(camera, 24)
        np.testing.assert_array_equal(view.color, color.detach().numpy())
        np.testing.assert_array_equal(view.alpha, alpha.detach().numpy())


def with_null(folder, make_null):
    built = loader.load_pipeline(folder, device="cpu", dtype=torch.float32)
    return Trellis(*built, STREAM, make_null=make_null)


def zeros():
    return {name: torch.zeros_like(x) for name, x in tokens(batch=1).items()}


def test_a_null_of_zeros_is_what_is_skipped_without_a_null(trellis, folder):
    """The branch that skips cross-attention, against one that attends to zeros."""
    (expected,) = trellis.generate(tokens(batch=1), seed=0)
    (mesh,) = with_null(folder, zeros).generate(tokens(batch=1), seed=0)
    np.testing.assert_allclose(mesh.vertices, expected.vertices, atol=1e-4)


def test_guidance_away_from_the_condition_itself_does_nothing(trellis):
    """(1 + g) v - g v = v."""
    stream = tokens(batch=1)
    (unguided,) = trellis.generate(stream, seed=0, guidance=0)
    (mesh,) = trellis.generate(stream, seed=0, null=stream)
    np.testing.assert_allclose(mesh.vertices, unguided.vertices, atol=1e-4)


def test_a_null_of_several_elements_is_refused(trellis):
    with pytest.raises(ValueError, match="null must be a stream of one element, got 2"):
        trellis.generate(tokens(), seed=0, null=tokens())


def test_the_null_is_made_once_and_never_without_guidance(folder):
    made = []

    def make():
        made.append(1)
        return tokens(batch=1, seed=9)

    trellis = with_null(folder, make)
    trellis.generate(tokens(), seed=0, guidance=0)
    assert made == []
    guided = trellis.generate(tokens(), seed=0)
    trellis.generate(tokens(), seed=0)
    assert made == [1]
    plain = with_null(folder, None).generate(tokens(), seed=0, null=tokens(batch=1, seed=9))
    assert all(same(*both) for both in zip(guided, plain, strict=True))


def break_weights(layer, value):
    with torch.no_grad():
        layer.weight.fill_(value)


@pytest.mark.parametrize(
    ("model", "stage", "format"),
    [
        ("structure_flow", "sparse structure flow", "mesh"),
        ("structure_decoder", "sparse-structure decoder", "mesh"),
        ("latent_flow", "structured latent flow", "mesh"),
        ("mesh_decoder", "mesh decoder", "mesh"),
        ("gaussian_decoder", "gaussians decoder", "gaussians"),
        ("radiance_field_decoder", "radiance-field decoder", "radiance-field"),
    ],
)
def test_numbers_that_are_not_finite_name_their_stage(trellis, model, stage, format):
    break_weights(getattr(trellis.models, model).input_layer, float("nan"))
    with pytest.raises(GenerationError, match=f"stage '{stage}' produced non-finite"):
        trellis.generate(tokens(batch=1), seed=0, format=format)


def test_tokens_that_are_not_finite_are_refused(trellis):
    stream = tokens(batch=1)
    stream["cls"][0, 0, 0] = float("inf")
    with pytest.raises(GenerationError, match="stage 'condition'"):
        trellis.generate(stream, seed=0)


def test_a_stream_of_another_layout_is_refused(trellis):
    with pytest.raises(ValueError, match="tiny/layernorm"):
        trellis.generate({"cls": torch.zeros(1, 1, 8)}, seed=0)


def set_occupancy(trellis, bias):
    last = trellis.models.structure_decoder.out_layer[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(bias)


def test_an_empty_structure_says_what_to_try(trellis):
    set_occupancy(trellis, -1.0)
    with pytest.raises(GenerationError, match="no occupied voxel.*another seed"):
        trellis.generate(tokens(batch=1), seed=0)


def test_too_many_voxels_are_refused_before_they_fill_memory(trellis):
    set_occupancy(trellis, 1.0)
    trellis.config = trellis.config.model_copy(update={"max_voxels": 60})
    with pytest.raises(GenerationError, match="64 occupied voxels, more than the limit of 60"):
        trellis.generate(tokens(batch=1), seed=0)


def test_a_decoder_that_sees_no_inside_names_its_stage(trellis):
    break_weights(trellis.models.mesh_decoder.out_layer, 0.0)
    trellis.models.mesh_decoder.out_layer.bias.data.fill_(1.0)
    with pytest.raises(GenerationError, match="'mesh decoder' produced no surface"):
        trellis.generate(tokens(batch=1), seed=0)


def test_the_contract_of_generators_is_kept(trellis):
    check_generator(
        GeneratorSpec(name="tiny", build=lambda weights: trellis, accepts=STREAM), weights="here"
    )


@pytest.mark.slow
def test_the_registered_mini_keeps_the_contract():
    mini = {spec.name: spec for spec in modalign_generators()}["trellis-mini"]
    check_generator(mini)


@pytest.mark.gpu
def test_a_seed_draws_the_noise_of_the_cpu_on_any_device(folder, monkeypatch):
    starts = []
    sample = Trellis._sample

    def record(self, stage, denoiser, noise, settings, progress):
        starts.append(noise.cpu())
        return sample(self, stage, denoiser, noise, settings, progress)

    monkeypatch.setattr(Trellis, "_sample", record)
    for device in ("cpu", "cuda"):
        built = loader.load_pipeline(folder, device=device, dtype=torch.float32)
        Trellis(*built, STREAM).generate(tokens(batch=1), seed=3)
    assert torch.equal(starts[0], starts[2])
    assert torch.equal(starts[1], starts[3])


SPECS = {spec.name: spec for spec in modalign_generators()}


@pytest.mark.parametrize(
    ("name", "num_tokens", "width"),
    [
        ("trellis-image-large", 1374, 1024),
        ("trellis-text-base", 77, 768),
        ("trellis-text-large", 77, 768),
        ("trellis-text-xlarge", 77, 768),
    ],
)
def test_the_full_size_can_be_looked_at_without_memory(name, num_tokens, width):
    spec = SPECS[name]
    assert spec.accepts.num_tokens == num_tokens
    built = spec.build(weights="random", device="meta")
    assert built.device.type == "meta"
    assert built.models.mesh_decoder.mesh_resolution == 256
    for flow in (built.models.structure_flow, built.models.latent_flow):
        assert flow.blocks[0].cross_attn.to_kv.in_features == width
    assert built.config.latent.cfg_strength == (5.0 if "image" in name else 7.5)


def test_text_pipelines_lead_away_from_the_tokens_of_an_empty_text(monkeypatch):
    encoder = installed().get("encoders", "clip-text-vitl14").build(weights="random", device="meta")
    asked = []
    prepare = type(encoder).prepare

    def watched(self, texts):
        asked.append(texts)
        return prepare(self, texts)

    monkeypatch.setattr(type(encoder), "prepare", watched)
    built = SPECS["trellis-text-base"].build(weights="random", device="meta")
    assert asked == []
    monkeypatch.setattr(generator, "require_finite", lambda stage, x: x)  # meta has no numbers
    assert built.null.shape == (1, 77, 768)
    assert asked == [[""]]
    assert SPECS["trellis-image-large"].build(weights="random", device="meta").null is None


@pytest.mark.parametrize("spec", modalign_generators(), ids=lambda spec: spec.name)
def test_the_formats_of_the_catalogue_are_those_of_the_networks(spec):
    """On the meta device, where the networks of the largest take no memory."""
    roles = spec.build(weights="random", device="meta").models.roles
    refused = [name for name in formats.FORMATS if name not in spec.formats]
    for name in spec.formats:
        assert set(formats.FORMATS[name]) <= set(roles)
    for name in refused:
        with pytest.raises(GenerationError, match="it can make mesh"):
            formats.decoders(name, roles)
    assert spec.formats[0] == spec.produces == "mesh"
