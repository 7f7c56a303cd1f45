"""From a stream to meshes with a material: seeds, independence, stages, and failures with names."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from modalign_plugins.generators.trellis.trellis2 import (
    Trellis2,
    Trellis2Config,
    loader,
    modalign_generators,
)

from modalign import GenerationError, GeneratorSpec, Progress, installed
from modalign.contract import pair_rows
from modalign.testing import check_generator

from .trellis2_tiny import STREAM, write_pipeline

FIELDS = tuple(loader.ROLES)


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


def built(folder, dtype=torch.float32):
    pipeline = loader.read_pipeline(folder)
    networks = loader.load_networks(folder, pipeline, device="cpu", dtype=dtype)
    return Trellis2(networks, Trellis2Config.of(pipeline), STREAM)


@pytest.fixture
def trellis(folder):
    return built(folder)


def changed(trellis, field, change):
    """The generator with one network changed."""
    model = getattr(trellis.networks, field)()
    with torch.no_grad():
        change(model)
    networks = dataclasses.replace(trellis.networks, **{field: lambda: model})
    return Trellis2(networks, trellis.config, trellis.accepts)


def same(left, right):
    return all(
        np.array_equal(getattr(left, name), getattr(right, name))
        for name in ("vertices", "faces", "vertex_colors", "metallic", "roughness", "alpha")
    )


def test_a_mesh_has_a_material_and_uses_all_its_vertices(trellis):
    mesh, _ = trellis.generate(tokens(), seed=0)
    assert len(mesh.faces) > 50
    assert np.array_equal(np.unique(mesh.faces), np.arange(len(mesh.vertices)))
    # Voxels reach 0.5, and vertices half a voxel of the 16^3 grid beyond.
    assert np.abs(mesh.vertices).max() <= 0.5 + 0.5 / 16
    for array in (mesh.vertex_colors, mesh.metallic, mesh.roughness, mesh.alpha):
        assert 0 <= array.min() < array.max() <= 1


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


def test_noise_is_drawn_structure_shape_texture_from_one_generator_on_the_cpu(trellis, monkeypatch):
    starts = []
    sample = Trellis2._sample

    def record(self, stage, denoisers, noises, settings, progress):
        starts.append(noises[0])
        return sample(self, stage, denoisers, noises, settings, progress)

    monkeypatch.setattr(Trellis2, "_sample", record)
    trellis.generate(tokens(batch=1), seed=3)
    draw = torch.Generator().manual_seed(3)
    assert torch.equal(starts[0], torch.randn(1, 4, 4, 4, 4, generator=draw))
    for noise in starts[1:]:
        assert torch.equal(noise, torch.randn(len(starts[1]), 4, generator=draw))


def test_guidance_changes_structure_and_shape_and_not_the_texture_s_own(trellis):
    stream = tokens(batch=1)
    config = trellis.config
    settings = config.structure.model_copy(update={"guidance_strength": 1.0})
    quiet = Trellis2(
        trellis.networks,
        config.model_copy(update={"structure": settings, "shape": settings}),
        STREAM,
    )
    (unguided,) = trellis.generate(stream, seed=0, guidance=1.0)
    assert same(unguided, quiet.generate(stream, seed=0)[0])
    assert not same(unguided, trellis.generate(stream, seed=0)[0])


def test_progress_counts_the_steps_of_every_stage_over_the_batch(trellis):
    seen = []
    trellis.generate(tokens(), seed=0, steps=2, progress=seen.append)
    stages = ("sparse structure", "shape latent", "texture latent")
    assert seen == [
        *(Progress(stage, step, 4) for stage in stages for step in (1, 2, 3, 4)),
        *(Progress("mesh", number, 2) for number in (1, 2)),
    ]


def test_a_network_is_freed_before_the_next_stage_reads_its_own(trellis):
    """Only the two decoders of the last stage are ever held together."""
    alive, most = weakref.WeakSet(), []

    def watched(field):
        def read():
            gc.collect()
            most.append((field, len(alive)))
            model = getattr(trellis.networks, field)()
            alive.add(model)
            return model

        return read

    networks = loader.Networks(**{field: watched(field) for field in FIELDS})
    Trellis2(networks, trellis.config, STREAM).generate(tokens(), seed=0)
    assert most == [(field, int(field == "texture_decoder")) for field in FIELDS_IN_ORDER]


FIELDS_IN_ORDER = (
    "structure_flow",
    "structure_decoder",
    "shape_flow",
    "texture_flow",
    "shape_decoder",
    "texture_decoder",
)


@pytest.mark.parametrize(
    ("field", "layer", "stage"),
    [
        ("structure_flow", "input_layer", "sparse structure flow"),
        ("structure_decoder", "input_layer", "sparse-structure decoder"),
        ("shape_flow", "input_layer", "shape latent flow"),
        ("texture_flow", "input_layer", "texture latent flow"),
        ("shape_decoder", "output_layer", "shape decoder"),
        ("texture_decoder", "output_layer", "texture decoder"),
    ],
)
def test_numbers_that_are_not_finite_name_their_stage(trellis, field, layer, stage):
    broken = changed(trellis, field, lambda model: getattr(model, layer).weight.fill_(float("nan")))
    with pytest.raises(GenerationError, match=f"stage '{stage}' produced non-finite"):
        broken.generate(tokens(batch=1), seed=0)


def test_each_network_reads_latents_in_its_own_scale(trellis):
    """Decoders x std + mean, as pipeline.json has them; the texture's flow the shape's own x."""
    seen = {}
    kept = {}
    for field in ("texture_flow", "shape_decoder", "texture_decoder"):
        kept[field] = getattr(trellis.networks, field)()
        kept[field].register_forward_pre_hook(
            lambda _, args, field=field: seen.setdefault(field, args)
        )
    networks = dataclasses.replace(
        trellis.networks, **{field: partial(kept.get, field) for field in kept}
    )
    samples = {}
    watched = Trellis2(networks, trellis.config, STREAM)
    sample_latents = watched.sample_latents

    def record(stage, *args, **options):
        samples[stage] = sample_latents(stage, *args, **options)
        return samples[stage]

    watched.sample_latents = record
    watched.generate(tokens(batch=1), seed=0)
    (shape,), (texture,) = samples["shape latent"], samples["texture latent"]
    known = seen["texture_flow"][3]
    assert torch.equal(known[: len(shape)], shape)
    assert torch.equal(seen["shape_decoder"][0].feats, shape * 2 + 0.5)
    assert torch.equal(seen["texture_decoder"][0].feats, texture * 3 - 0.5)


def constant_logits(value):
    def change(model):
        model.out_layer[-1].weight.zero_()
        model.out_layer[-1].bias.fill_(value)

    return change


def test_an_empty_structure_says_what_to_try(trellis):
    empty = changed(trellis, "structure_decoder", constant_logits(-1.0))
    with pytest.raises(GenerationError, match="no occupied voxel.*another seed"):
        empty.generate(tokens(batch=1), seed=0)


def test_the_structure_is_pooled_to_half_its_resolution(trellis):
    """All of the decoder's 8^3 grid occupied makes 4^3 voxels."""
    full = changed(trellis, "structure_decoder", constant_logits(1.0))
    draws = [torch.Generator().manual_seed(0)]
    (places,), side = full.sample_structures(
        STREAM.pack(tokens(batch=1)), full.config.structure, draws
    )
    assert side == 4
    assert torch.equal(places.coords[:, 1:].long(), torch.cartesian_prod(*[torch.arange(4)] * 3))


def test_too_many_voxels_are_refused_before_they_fill_memory(trellis):
    config = trellis.config.model_copy(update={"max_voxels": 20})
    small = Trellis2(trellis.networks, config, STREAM)
    with pytest.raises(GenerationError, match=r"makes \d+ voxels at level \d, more than.*of 20"):
        small.generate(tokens(batch=1), seed=0)


def test_a_shape_that_keeps_no_voxel_names_its_stage(trellis):
    def change(model):
        model.blocks[0][-1].to_subdiv.weight.zero_()
        model.blocks[0][-1].to_subdiv.bias.fill_(-1.0)

    with pytest.raises(GenerationError, match="'shape decoder' keeps no voxel at level 1"):
        changed(trellis, "shape_decoder", change).generate(tokens(batch=1), seed=0)


def test_a_shape_without_a_cut_edge_names_its_stage(trellis):
    def change(model):
        model.output_layer.weight.zero_()
        model.output_layer.bias.fill_(-1.0)

    with pytest.raises(GenerationError, match="'shape decoder' produced no surface"):
        changed(trellis, "shape_decoder", change).generate(tokens(batch=1), seed=0)


def test_tokens_that_are_not_finite_or_of_another_layout_are_refused(trellis):
    stream = tokens(batch=1)
    stream["cls"][0, 0, 0] = float("inf")
    with pytest.raises(GenerationError, match="stage 'condition'"):
        trellis.generate(stream, seed=0)
    with pytest.raises(ValueError, match="tiny/layernorm"):
        trellis.generate({"cls": torch.zeros(1, 1, 8)}, seed=0)


def test_a_mesh_comes_out_of_bfloat16_trunks(folder):
    (mesh,) = built(folder, torch.bfloat16).generate(tokens(batch=1), seed=0)
    assert len(mesh.faces) > 50


def test_the_contract_of_generators_is_kept(trellis):
    check_generator(
        GeneratorSpec(name="tiny", build=lambda weights: trellis, accepts=STREAM), weights="here"
    )


def test_the_full_size_can_be_looked_at_without_memory():
    (spec,) = modalign_generators()
    assert spec.accepts.num_tokens == 1 + 4 + 32 * 32
    built = spec.build(weights="random", device="meta")
    assert built.networks.shape_decoder().factor * 32 == 512
    assert next(built.networks.shape_flow().parameters()).device.type == "meta"


def test_the_registered_dinov3_at_512_drives_it():
    registry = installed()
    rows = pair_rows(
        registry.get("encoders", "dinov3-vitl16"), registry.get("generators", "trellis2-512"), []
    )
    assert rows[0] == ("pair", "works", "the same space")
