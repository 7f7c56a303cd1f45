"""Editing: what strength, regions and weights promise, exactly; the tiny pipeline has encoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modalign_plugins.generators.trellis import Trellis, architectures, loader
from modalign_plugins.generators.trellis.config import SamplerSettings
from modalign_plugins.generators.trellis.editing import (
    box,
    edit_latent,
    inside_region,
    nearest_rows,
)
from modalign_plugins.generators.trellis.encoding import Encoders
from modalign_plugins.generators.trellis.sampler import Start, euler_steps, mixed, times
from modalign_plugins.generators.trellis.sparse import Coordinates, SparseTensor

from modalign import WeightsError

from .trellis_tiny import ENCODERS, STREAM, write_pipeline
from .trellis_worlds import shaken

LOWER = box((-1, -1, -1), (1, 1, 0))
SETTINGS = SamplerSettings(steps=5, cfg_strength=2)


def tiny_encoders():
    built = [
        shaken(architectures.build_model(file, role), seed).eval().requires_grad_(False)
        for seed, (role, file) in enumerate(ENCODERS.items())
    ]
    return Encoders(*built, "distances")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    write_pipeline(folder)
    return folder


@pytest.fixture
def trellis(folder):
    trellis = Trellis(*loader.load_pipeline(folder, device="cpu", dtype=torch.float32), STREAM)
    trellis.load_encoders = tiny_encoders
    return trellis


def tokens(batch=1, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.randn(batch, group.num_tokens, group.dim, generator=draw)
        for group in STREAM.groups
    }


@pytest.fixture
def original():
    """A wall of voxels and a few beside it, with latents of their own."""
    xyz = torch.tensor([[x, y, z] for x in range(4) for y in (0, 1) for z in range(4)])
    feats = torch.randn(len(xyz), 4, generator=torch.Generator().manual_seed(9))
    at = Coordinates(torch.nn.functional.pad(xyz, (1, 0)), 1)
    return SparseTensor(at, feats)


def edited(trellis, original, **options):
    defaults = {"seed": 3, "strength": 1.0, "structure_strength": 1.0, "keep": None}
    condition = STREAM.pack(tokens())
    return edit_latent(trellis, condition, original, **(defaults | options))


def same(left, right):
    return np.array_equal(left.vertices, right.vertices) and np.array_equal(left.faces, right.faces)


def curved(x, t, guided):
    return torch.sin(3 * x) + t, torch.cos(x) if guided else None


def last(noise, start=None, denoiser=curved, settings=SETTINGS):
    x = None
    for step in euler_steps(denoiser, noise, settings, start):
        x = step.x
    return x


def test_a_start_of_full_strength_is_plain_sampling_bit_for_bit():
    noise, data = torch.randn(2, 50)
    assert torch.equal(last(noise, Start(data)), last(noise))
    nothing = torch.zeros(50, dtype=torch.bool)
    assert torch.equal(last(noise, Start(data, 1.0, nothing)), last(noise))


def test_a_start_of_no_strength_takes_no_step():
    assert last(torch.randn(5), Start(torch.randn(5), 0.0)) is None


def test_a_partial_start_follows_the_path_to_its_own_data():
    """With the velocity of the path itself every strength arrives at the data (algebra)."""
    noise, data = torch.randn(2, 50, dtype=torch.float64)
    s = SETTINGS.sigma_min

    def straight(x, t, guided):
        v = (1 - s) * noise - data
        return v, v

    for strength in (0.05, 0.37, 0.6, 1.0):
        found = last(noise, Start(data, strength), straight)
        torch.testing.assert_close(found, data + s * noise)


def test_what_is_kept_is_the_data_exactly_and_on_its_path_before():
    noise, data = torch.randn(2, 50)
    keep = torch.arange(50) % 3 == 0
    seen = []

    def recorded(x, t, guided):
        seen.append((t, x))
        return curved(x, t, guided)

    start = Start(data, 0.8, keep)
    found = last(noise, start, recorded)
    assert torch.equal(found[keep], data[keep])
    assert not torch.isclose(found[~keep], data[~keep]).any()
    assert len(seen) == 4
    for t, x in seen:
        assert torch.equal(x[keep], start.noised(noise, t, SETTINGS.sigma_min)[keep])
    assert torch.equal(last(noise, Start(data, 1.0, torch.ones(50, dtype=torch.bool))), data)


def test_strength_is_a_share_of_the_steps_before_they_are_rescaled():
    assert times(4, 1, 0.5) == [0.5, 0.25, 0]
    assert times(4, 1, 0.6) == [0.6, 0.5, 0.25, 0]
    assert times(4, 3, 0.5) == times(4, 3)[2:]
    assert times(4, 3, 0.0) == [0]


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_of_its_range_is_refused(trellis, original, strength):
    with pytest.raises(ValueError, match=r"strength must be within 0\.\.1"):
        Start(torch.zeros(1), strength)
    for name in ("strength", "structure_strength"):
        with pytest.raises(ValueError, match=f"{name} must be within"):
            edited(trellis, original, **{name: strength})


def test_one_condition_alone_is_plain_sampling_and_weights_are_linear():
    noise = torch.randn(50)

    def other(x, t, guided):
        raise AssertionError("a condition of weight 0 was asked")

    assert torch.equal(last(noise, None, mixed([1.0])([curved])), last(noise))
    assert torch.equal(last(noise, None, mixed([1.0, 0.0])([curved, other])), last(noise))
    one, two = (lambda x, t, guided, v=v: (torch.tensor(v), torch.tensor(9.0)) for v in (1.0, 3.0))
    v, without = mixed([0.25, 0.75])([one, two])(noise, 0.5, True)
    assert v == 0.25 * 1 + 0.75 * 3
    assert without == 9


@pytest.mark.parametrize("weights", [[], [0.5, 0.6], [1.5, -0.5], [float("nan")]])
def test_weights_that_do_not_sum_to_one_are_refused(weights):
    with pytest.raises(ValueError, match="must sum to 1"):
        mixed(weights)


def test_as_many_weights_as_conditions_are_needed(trellis):
    with pytest.raises(ValueError, match="2 weights for 1 conditions"):
        trellis.generate_mixed([tokens()], [0.5, 0.5], seed=0)
    with pytest.raises(ValueError, match=r"one batch size, got \[1, 2\]"):
        trellis.generate_mixed([tokens(), tokens(2)], [0.5, 0.5], seed=0)


def test_a_mixture_lies_with_neither_and_a_pure_one_is_generate(trellis):
    one, two = tokens(seed=0), tokens(seed=1)
    (plain,) = trellis.generate(one, seed=4)
    (pure,) = trellis.generate_mixed([one, two], [1.0, 0.0], seed=4)
    (half,) = trellis.generate_mixed([one, two], [0.5, 0.5], seed=4)
    assert same(pure, plain)
    assert not same(half, plain)


def test_an_edit_of_full_strength_is_generate_and_of_none_the_original(trellis, original):
    (plain,) = trellis.generate(tokens(), seed=3)
    trellis.load_encoders = None  # plain sampling needs none
    (full,) = trellis.edit(tokens(), original, seed=3)
    assert same(full, plain)
    nothing = edited(trellis, original, strength=0.0, structure_strength=0.0)
    assert torch.equal(nothing.at.coords, original.at.coords)
    assert torch.equal(nothing.feats, original.feats)


def test_element_k_of_an_edit_depends_on_its_tokens_and_seed_plus_k_alone(trellis, original):
    stream = tokens(2)
    _, second = trellis.edit(stream, original, seed=5, strength=0.5)
    alone = {name: x[1:] for name, x in stream.items()}
    assert same(*trellis.edit(alone, original, seed=6, strength=0.5), second)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_voxels_and_latents_of_a_kept_region_stay_exactly(trellis, original, strength):
    found = edited(trellis, original, strength=strength, structure_strength=strength, keep=LOWER)
    before, after = (inside_region(LOWER, x.at, 4) for x in (original, found))
    assert before.any()
    assert not before.all()
    assert torch.equal(found.at.coords[after], original.at.coords[before])
    assert torch.equal(found.feats[after], original.feats[before])
    assert not after.all()
    rows, old = nearest_rows(found.at, original.at)
    assert not torch.isclose(found.feats[~after], original.feats[rows[~after]]).all()


def test_a_region_of_everything_keeps_everything(trellis, original):
    whole = box((-1, -1, -1), (1, 1, 1))
    found = edited(trellis, original, keep=whole)
    assert torch.equal(found.at.coords, original.at.coords)
    assert torch.equal(found.feats, original.feats)


def test_structure_strength_zero_keeps_the_voxels_and_changes_the_latents(trellis, original):
    found = edited(trellis, original, structure_strength=0.0)
    assert torch.equal(found.at.coords, original.at.coords)
    assert not torch.isclose(found.feats, original.feats).all()


def test_variants_sample_the_second_stage_alone_at_the_voxels_of_the_mesh(trellis, monkeypatch):
    """The noise of a variant is the first that its seed draws: no structure came before."""
    (mesh,) = trellis.generate(tokens(), seed=0)
    seen = []
    sample = Trellis._sample

    def record(self, stage, denoiser, noise, *rest):
        seen.append((stage, noise))
        return sample(self, stage, denoiser, noise, *rest)

    monkeypatch.setattr(Trellis, "_sample", record)
    first, second = trellis.variants(tokens(2), mesh, seed=7)
    assert not same(first, second)
    assert [stage for stage, _ in seen] == ["structured latent"] * 2
    noise = seen[1][1]
    assert torch.equal(noise, torch.randn(noise.shape, generator=torch.Generator().manual_seed(8)))


def test_progress_counts_the_steps_that_are_taken(trellis, original):
    seen = []
    trellis.edit(tokens(), original, seed=0, steps=4, strength=0.5, progress=seen.append)
    steps = [(p.stage, p.step, p.total) for p in seen]
    assert steps[:2] == [("sparse structure", 1, 2), ("sparse structure", 2, 2)]
    assert steps[2:4] == [("structured latent", 1, 2), ("structured latent", 2, 2)]


def test_the_nearest_row_is_the_same_voxel_where_there_is_one(original):
    at = Coordinates(torch.tensor([[0, 0, 0, 0], [0, 1, 1, 2], [0, 2, 3, 3]]), 1)
    rows, there = nearest_rows(at, original.at)
    assert there.tolist() == [True, True, False]
    assert original.at.coords[rows].tolist() == [[0, 0, 0, 0], [0, 1, 1, 2], [0, 2, 1, 3]]


def test_regions_are_boxes_or_answer_each_point(original):
    with pytest.raises(ValueError, match="two corners"):
        box((0, 0), (1, 1))
    with pytest.raises(ValueError, match="two corners"):
        box((0, 0, 1), (1, 1, 0))
    with pytest.raises(ValueError, match=r"32 points .* got \(32, 3\) of torch.float32"):
        inside_region(lambda points: points, original.at, 4)


def test_what_is_not_one_object_of_this_pipeline_is_refused(trellis, original):
    two = SparseTensor(original.at.repeated(2), original.feats.repeat(2, 1))
    for wrong in (two, original.replace(original.feats[:, :3])):
        with pytest.raises(ValueError, match="must be one object with 4 numbers at each voxel"):
            edited(trellis, wrong)


def test_a_pipeline_without_encoders_says_so(trellis, original):
    trellis.load_encoders = None
    with pytest.raises(WeightsError, match="no encoders"):
        trellis.edit(tokens(), original, seed=0, strength=0.5)
