"""The sampler: straight paths, and when it guides. Golden entries compare whole trajectories."""

from __future__ import annotations

import pytest
import torch
from modalign_plugins.generators.trellis.config import SamplerSettings
from modalign_plugins.generators.trellis.sampler import averaged, euler_steps, in_turn, times
from pydantic import ValidationError


def test_a_perfect_velocity_carries_noise_to_data_in_one_step():
    """v = (1 - s) noise - x_0 is the slope of the path; at t = 0 the path holds s noise + x_0."""
    noise, data = torch.randn(5), torch.randn(5)
    settings = SamplerSettings(steps=1, cfg_strength=0)

    def denoiser(x, t, guided):
        assert t == 1
        return (1 - settings.sigma_min) * noise - data, None

    (step,) = euler_steps(denoiser, noise, settings)
    torch.testing.assert_close(step.x_0, data)
    torch.testing.assert_close(step.x, data + settings.sigma_min * noise)


@pytest.mark.parametrize(("steps", "guided_steps"), [(12, 10), (25, 19), (50, 38)])
def test_guidance_applies_inside_the_interval_only(steps, guided_steps):
    """Counts of the released defaults, from the reference's call log."""
    calls = []

    def denoiser(x, t, guided):
        calls.append((t, guided))
        return x, 3 * x if guided else None

    for _ in euler_steps(denoiser, torch.ones(1), SamplerSettings(steps=steps)):
        pass
    assert len(calls) == steps
    assert sum(guided for _, guided in calls) == guided_steps
    assert all(guided == (t >= 0.5) for t, guided in calls)


def test_a_strength_of_zero_is_no_guidance():
    def denoiser(x, t, guided):
        assert not guided
        return x, None

    assert len(list(euler_steps(denoiser, torch.ones(1), SamplerSettings(cfg_strength=0)))) == 25


def test_guidance_moves_away_from_the_unconditional_velocity():
    settings = SamplerSettings(steps=1, cfg_strength=2, rescale_t=1)
    (step,) = euler_steps(
        lambda x, t, guided: (torch.tensor(1.0), torch.tensor(0.5)), torch.tensor(0.0), settings
    )
    assert step.x == -(3 * 1.0 - 2 * 0.5)


def test_rescaled_times_crowd_near_the_noise():
    assert times(4, 1) == [1, 0.75, 0.5, 0.25, 0]
    assert times(2, 3) == [1, 0.75, 0]


def test_several_conditions_take_turns_or_are_averaged():
    one, two = (lambda x, t, guided, v=v: (torch.tensor(v), None) for v in (1.0, 3.0))
    turns = in_turn([one, two])
    assert [turns(None, 0.0, False)[0].item() for _ in range(3)] == [1, 3, 1]
    assert averaged([one, two])(None, 0.0, False)[0] == 2


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rescale_t": 0}, {"strength": 1}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        SamplerSettings(**wrong)
