"""RAE's decoder: its own encoder's tokens are decoded as by itself, other grids are resampled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from modalign import BuildError, build, hookimpl, installed
from tests.modalign import stubs

from .diffusers_tiny import write


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def stock(tmp_path):
    """The whole tiny autoencoder: tokens of 4 x 4, statistics, a scaling factor."""
    from diffusers import AutoencoderRAE

    write("rae-decoder", tmp_path)
    return AutoencoderRAE.from_pretrained(tmp_path, low_cpu_mem_usage=False).eval()


@pytest.fixture
def generator(stock, tmp_path):
    return installed().get("generators", "rae-decoder").build(weights=tmp_path)


def test_tokens_of_its_own_encoder_come_back_as_its_own_reconstruction(stock, generator):
    """What the encoder says before normalisation is our space: LayerNorm without affine."""
    picture = noise(1, 3, 56, 56).sigmoid()
    with torch.no_grad():
        latent = stock.encode(picture).latent
        expected = stock.decode(latent).sample[0].permute(1, 2, 0)
        normalised = (picture - stock.encoder_mean) / stock.encoder_std
        tokens = stock.encoder(normalised).last_hidden_state[:, 5:]  # class token and registers
        torch.testing.assert_close(tokens.mean(-1), torch.zeros(1, 16), atol=1e-5, rtol=0)
        torch.testing.assert_close(generator.latent(tokens), latent)
        pixels = generator.model.decode(generator.latent(tokens)).sample[0].permute(1, 2, 0)
    torch.testing.assert_close(pixels, expected, atol=1e-4, rtol=0)


def test_a_grid_of_37_is_resampled_bilinearly_row_by_row(generator):
    grid = noise(1, 1024, 37, 37)
    latent = generator.latent(grid.flatten(2).transpose(1, 2))
    small = interpolate(grid, size=(4, 4), mode="bilinear")
    mean = torch.tensor(generator.model.config.latents_mean)
    std = torch.tensor(generator.model.config.latents_std)
    expected = (small - mean) / (std + 1e-5) * generator.model.config.scaling_factor
    torch.testing.assert_close(latent, expected)


def test_the_encoder_is_left_out(generator):
    assert not [name for name, _ in generator.model.named_parameters() if "encoder." in name[:8]]


def test_the_seed_changes_nothing(generator):
    stream = {"patches": noise(1, 37 * 37, 1024)}
    one, two = (generator.generate(stream, seed=seed)[0] for seed in (0, 1))
    assert np.array_equal(one.pixels, two.pixels)


def test_a_pipeline_of_dinov2_large_shows_its_patches(generator):
    """The way to the decoder is found in the real streams: cls and registers are dropped."""
    large = installed().get("encoders", "dinov2-vitl14-reg").stream
    decoder = replace(installed().get("generators", "rae-decoder"), build=stubs.giving(generator))

    class Plugin:
        @hookimpl
        def modalign_generators(self):
            return [decoder]

    weights = {"cls": 0.3, "registers": 0.3, "patches": 0.4}
    recipe = stubs.RECIPE.derive(generator=None, objective={"options": {"weights": weights}})
    known = stubs.registry(recipe, encoder={"stream": large}, more=[Plugin()])
    pipeline = build("stub", weights="random", registry=known)
    stream = pipeline.align("a mug", num_inference_steps=1)
    (shown,) = pipeline.preview(stream)
    (expected,) = generator.generate({"patches": stream["patches"]}, seed=0)
    assert np.array_equal(shown.pixels, expected.pixels)


def test_the_mini_s_space_has_no_decoder_and_the_error_says_which_space_has():
    pipeline = build("gap3d-mini", weights="random", device="meta")
    stream = {
        group.name: torch.zeros(1, group.num_tokens, group.dim) for group in pipeline.stream.groups
    }
    with pytest.raises(
        BuildError,
        match="tokens of 'dinov2-mini-reg.*'rae-decoder' reads 'dinov2-vitl14-reg/layernorm@518'",
    ):
        pipeline.preview(stream)
