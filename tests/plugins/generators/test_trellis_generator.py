"""From a stream to meshes: seeds, independence, and failures that name their stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modalign_plugins.generators.trellis import Trellis, loader, modalign_generators
from modalign_plugins.generators.trellis.sampler import averaged

from modalign import GenerationError, GeneratorSpec, Progress
from modalign.testing import check_generator

from .trellis_tiny import STREAM, write_pipeline


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


def test_one_condition_given_twice_is_that_condition(trellis):
    condition = STREAM.pack(tokens(batch=1))
    once = trellis.generate_one(condition, seed=0)
    for options in ({}, {"combine": averaged}):
        twice = trellis.generate_one(condition.repeat(2, 1, 1), seed=0, **options)
        np.testing.assert_allclose(twice.vertices, once.vertices, atol=1e-4)


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


def break_weights(layer, value):
    with torch.no_grad():
        layer.weight.fill_(value)


@pytest.mark.parametrize(
    ("model", "stage"),
    [
        ("structure_flow", "sparse structure flow"),
        ("structure_decoder", "sparse-structure decoder"),
        ("latent_flow", "structured latent flow"),
        ("mesh_decoder", "mesh decoder"),
    ],
)
def test_numbers_that_are_not_finite_name_their_stage(trellis, model, stage):
    break_weights(getattr(trellis.models, model).input_layer, float("nan"))
    with pytest.raises(GenerationError, match=f"stage '{stage}' produced non-finite"):
        trellis.generate(tokens(batch=1), seed=0)


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


def test_the_full_size_can_be_looked_at_without_memory():
    large = {spec.name: spec for spec in modalign_generators()}["trellis-image-large"]
    assert large.accepts.num_tokens == 1374
    built = large.build(weights="random", device="meta")
    assert built.device.type == "meta"
    assert built.models.mesh_decoder.mesh_resolution == 256
