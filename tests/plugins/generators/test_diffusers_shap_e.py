"""Shap-E: the slot of its image encoder, and the mesh that comes out."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from modalign import GenerationError, installed

from .diffusers_tiny import marching_cubes_tables, small, write

# diffusers turns tensors into arrays in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def shap_e(tmp_path):
    write("shap-e-img2img", tmp_path)
    return small(installed().get("generators", "shap-e-img2img").build(weights=tmp_path))


def tokens(batch=1, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {"patches": torch.randn(batch, 256, 1024, generator=draw)}


class Encoder:
    """An image encoder that sees the same in every picture, as CLIPVisionModel returns it."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, hidden):
        self.hidden = hidden

    def __call__(self, pixels):
        return {"last_hidden_state": self.hidden}


def signed_volume(mesh):
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2).astype(np.float64)
    return (a * np.cross(b, c)).sum() / 6


@pytest.mark.parametrize("grid_size", [12, pytest.param(128, marks=pytest.mark.slow)])
def test_the_mesh_is_the_stock_pipeline_s_in_our_box_and_colours(shap_e, grid_size, monkeypatch):
    """Called with a picture and an encoder of its own; 128 is the grid that it always takes."""
    stream = tokens()
    shap_e.grid_size = grid_size
    (mesh,) = shap_e.generate(stream, seed=4, steps=2, guidance=3.0)
    stock = shap_e.pipeline
    class_token = torch.full((1, 1, 1024), 7.0)  # whatever it says, it is dropped
    stock.register_modules(image_encoder=Encoder(torch.cat([class_token, stream["patches"]], 1)))
    if grid_size != 128:
        renderer = stock.shap_e_renderer
        coarse = partial(renderer.decode_to_mesh, grid_size=grid_size)
        monkeypatch.setattr(renderer, "decode_to_mesh", coarse)
    (made,) = stock(
        torch.zeros(1, 3, 224, 224),
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(4),
        output_type="mesh",
    ).images
    np.testing.assert_array_equal(mesh.vertices, made.verts.numpy() / 2)  # -1..1 to -0.5..0.5
    assert np.array_equal(np.sort(mesh.faces), np.sort(made.faces.numpy()))
    # The renderer made linear light of what the network displays: undone, as far as float32 goes.
    display = [made.vertex_channels[name].numpy().astype(np.float64) for name in "RGB"]
    display = [np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055) for x in display]
    np.testing.assert_allclose(mesh.vertex_colors, np.stack(display, 1), atol=1e-6)


def test_guidance_contrasts_the_tokens_with_zeros(shap_e):
    """What the network reads: without guidance the tokens, with it zeros and the tokens."""
    seen, stream = [], tokens()
    shap_e.pipeline.prior.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(kwargs["proj_embedding"]),
        with_kwargs=True,
    )
    for guidance in (1.0, 3.0):
        shap_e.generate(stream, seed=0, steps=1, guidance=guidance)
    assert torch.equal(seen[0], stream["patches"])
    assert torch.equal(seen[-1], torch.cat([torch.zeros(1, 256, 1024), stream["patches"]]))


def test_colours_undo_the_renderer_s_own_curve():
    from diffusers.pipelines.shap_e import renderer
    from modalign_plugins.generators.diffusers.shap_e import srgb_from_linear

    displayed = torch.linspace(0, 1, 1000)
    linear = renderer._convert_srgb_to_linear(displayed)
    torch.testing.assert_close(srgb_from_linear(linear), displayed, atol=1e-4, rtol=0)


def test_faces_look_outward_whichever_way_the_tables_turn(shap_e):
    (mesh,) = shap_e.generate(tokens(), seed=0, steps=2)
    assert signed_volume(mesh) > 0
    cases, _ = marching_cubes_tables()
    shap_e.pipeline.shap_e_renderer.mesh_decoder.cases.copy_(cases.flip(2))
    (turned,) = shap_e.generate(tokens(), seed=0, steps=2)
    assert np.array_equal(turned.vertices, mesh.vertices)
    assert signed_volume(turned) == pytest.approx(signed_volume(mesh))


def test_an_empty_field_names_the_stage_and_says_what_to_try(shap_e):
    """A network that sees no inside anywhere: the stock renderer stumbles over this."""
    last = shap_e.pipeline.shap_e_renderer.mlp.mlp[-1]
    with torch.no_grad():
        last.weight[0].zero_()
        last.bias[0] = -1.0
    with pytest.raises(GenerationError, match="stage 'mesh' found no surface.*another seed"):
        shap_e.generate(tokens(), seed=0, steps=2)


@pytest.mark.parametrize(("row", "stage"), [(0, "signed distances"), (3, "colours")])
def test_numbers_that_are_not_finite_name_their_stage(shap_e, row, stage):
    shap_e.pipeline.shap_e_renderer.mlp.mlp[-1].bias.data[row] = float("nan")
    with pytest.raises(GenerationError, match=f"stage '{stage}' produced non-finite"):
        shap_e.generate(tokens(), seed=0, steps=2)


def test_a_latent_that_is_not_finite_names_its_stage(shap_e):
    shap_e.pipeline.prior.proj_to_clip_embeddings.bias.data.fill_(float("nan"))
    with pytest.raises(GenerationError, match="stage 'latent' produced non-finite"):
        shap_e.generate(tokens(), seed=0, steps=2)
