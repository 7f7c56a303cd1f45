"""TRELLIS.2's guidance: what it reduces to, and its rescaling by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modalign_plugins.generators.trellis.trellis2.config import SamplerEntry, SamplerSettings
from modalign_plugins.generators.trellis.trellis2.sampler import (
    data_of,
    euler_steps,
    guided_velocity,
    velocity_to,
)
from modalign_plugins.generators.trellis.trellis2.sizes import PIPELINE
from pydantic import ValidationError


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def last(denoiser, noise, **settings):
    return list(euler_steps(denoiser, noise, SamplerSettings(**settings)))[-1]


def test_a_perfect_velocity_carries_noise_to_data_in_one_step():
    """v = (1 - s) noise - x_0 is the slope of the path; at t = 0 the path holds s noise + x_0."""
    noise, data, s = randn(5), randn(5, seed=1), 1e-5
    x = last(lambda x, t, guided: ((1 - s) * noise - data, None), noise, steps=1, sigma_min=s)
    torch.testing.assert_close(x, data + s * noise)


def test_a_strength_of_one_is_the_positive_velocity_alone():
    def denoiser(x, t, guided):
        assert not guided
        return 0.3 * x, None

    alone = last(denoiser, randn(6), steps=3, guidance_strength=1.0, guidance_rescale=0.7)
    x = randn(6)
    for t, t_next in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0)):
        x = x - (t - t_next) * 0.3 * x
    torch.testing.assert_close(alone, x)


def test_without_rescaling_two_velocities_are_mixed_by_their_strength():
    settings = SamplerSettings(guidance_strength=7.5)
    v, without = randn(3, 4), randn(3, 4, seed=1)
    mixed = guided_velocity(randn(3, 4, seed=2), 0.8, v, without, settings)
    torch.testing.assert_close(mixed, 7.5 * v - 6.5 * without)
    # One more than TRELLIS's strength.
    torch.testing.assert_close(mixed, (1 + 6.5) * v - 6.5 * without)


def test_data_and_velocity_are_two_words_for_one_thing():
    x, v = randn(3, 4), randn(3, 4, seed=1)
    torch.testing.assert_close(velocity_to(x, 0.4, data_of(x, 0.4, v, 1e-5), 1e-5), v)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_rescaling_by_hand(share):
    """In numpy, written out from the definition, over all numbers of the one sample."""
    x, v, without = (randn(5, 3, seed=k).numpy() for k in range(3))
    t, s, g = 0.7, 1e-5, 4.0
    noise_level = s + (1 - s) * t
    mixed = g * v + (1 - g) * without
    data_alone = (1 - s) * x - noise_level * v
    data = (1 - s) * x - noise_level * mixed
    scaled = data * data_alone.std() / data.std()
    target = share * scaled + (1 - share) * data
    expected = ((1 - s) * x - target) / noise_level
    settings = SamplerSettings(guidance_strength=g, guidance_rescale=share, sigma_min=s)
    x, v, without = (torch.from_numpy(array) for array in (x, v, without))
    got = guided_velocity(x, t, v, without, settings)
    torch.testing.assert_close(got, torch.from_numpy(expected))


def test_wholly_rescaled_data_have_the_spread_of_the_unguided():
    x, v, without = (randn(2, 8, 4, 4, seed=k) for k in range(3))
    settings = SamplerSettings(guidance_strength=7.5, guidance_rescale=1.0)
    got = guided_velocity(x, 0.9, v, without, settings)
    s = settings.sigma_min
    torch.testing.assert_close(data_of(x, 0.9, got, s).std(), data_of(x, 0.9, v, s).std())


def test_a_constant_guess_has_nothing_to_rescale():
    settings = SamplerSettings(guidance_strength=2.0, guidance_rescale=1.0)
    zero = torch.zeros(4)
    assert torch.equal(guided_velocity(zero, 0.5, zero, zero, settings), zero)


@pytest.mark.parametrize(
    ("role", "guided"),
    [("sparse_structure_sampler", 10), ("shape_slat_sampler", 9), ("tex_slat_sampler", 0)],
)
def test_the_defaults_guide_inside_their_interval_only(role, guided):
    """Steps are at s = 12/12 .. 1/12, t = r s / (1 + (r - 1) s), guided from t = 0.6 on.

    r = 5: from s = 0.231, 12/12 .. 3/12. r = 3: from s = 1/3, where t is 0.6: 12/12 .. 4/12, as
    numpy's linspace rounds it, too. The texture has a strength of 1.
    """
    settings = getattr(PIPELINE.args, role).settings()
    s = np.linspace(1, 0, 13)[:-1]
    t = settings.rescale_t * s / (1 + (settings.rescale_t - 1) * s)
    low, high = settings.guidance_interval
    seen = []

    def denoiser(x, t, guided):
        seen.append(guided)
        return x, x if guided else None

    list(euler_steps(denoiser, torch.ones(2), settings))
    assert sum(seen) == guided
    if settings.guidance_strength != 1:
        assert seen == ((low <= t) & (t <= high)).tolist()


def test_a_pipeline_in_trellis_s_own_words_is_refused():
    """Its cfg_strength is one less than a guidance_strength: to take one for the other is wrong."""
    with pytest.raises(ValidationError, match="cfg_strength"):
        SamplerEntry(params={"steps": 12, "cfg_strength": 7.5})


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"rescale_t": 0}, {"guidance_rescale": 2}, {"guidance_strength": -1}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        SamplerSettings(**wrong)
