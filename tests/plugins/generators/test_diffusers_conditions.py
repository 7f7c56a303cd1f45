"""What each stock pipeline is conditioned on, and what guidance contrasts it with.

Oracles are stock pipelines fed with pictures: they compute tokens by encoders of their own.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from modalign import WeightsError, installed

from .diffusers_tiny import (
    WRITE,
    small,
    tiny_flux,
    tiny_flux_vae,
    tiny_unet,
    write,
)

# diffusers turns tensors into arrays in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def spec_of(name):
    return installed().get("generators", name)


@pytest.fixture
def tiny(tmp_path):
    def built(name, **sizes):
        if sizes:
            WRITE[name](tmp_path, **sizes)
        else:
            write(name, tmp_path)
        return small(spec_of(name).build(weights=tmp_path))

    return built


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def photograph(side):
    return Image.fromarray((noise(side, side, 3).sigmoid() * 255).byte().numpy())


@pytest.mark.parametrize("name", ["sdxl-eva", "kandinsky-2.2", "ip-adapter"])
def test_guidance_changes_nothing_at_the_null_condition(name, tiny):
    """v = null + g (tokens - null): where tokens are null, g is without effect."""
    generator = tiny(name)
    accepts = generator.accepts
    null = getattr(generator, "null", torch.zeros(1, accepts.num_tokens, accepts.groups[0].dim))
    stream = accepts.split(null.reshape(1, accepts.num_tokens, -1))
    other = accepts.split(null.reshape(1, accepts.num_tokens, -1) + 1)

    def numbers(given, guidance):
        (asset,) = generator.generate(given, seed=0, steps=2, guidance=guidance)
        return asset.pixels.astype(np.float64)

    # One unit of a pixel: batches of one and of two are summed in another order.
    np.testing.assert_allclose(numbers(stream, 4.0), numbers(stream, 1.0), atol=1)
    assert np.abs(numbers(other, 4.0) - numbers(other, 1.0)).max() > 1


def test_kandinsky_s_null_is_its_prior_s_zero_embedding(tiny, tmp_path):
    from diffusers import KandinskyV22PriorPipeline
    from transformers import CLIPVisionModelWithProjection

    generator = tiny("kandinsky-2.2")
    folder = tmp_path / "kandinsky-2-2-prior" / "image_encoder"
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder)
    prior = KandinskyV22PriorPipeline(
        prior=nn.Linear(1, 1),
        image_encoder=encoder,
        text_encoder=None,
        tokenizer=None,
        scheduler=None,
        image_processor=None,
    )
    torch.testing.assert_close(generator.null, prior.get_zero_embed(device="cpu"), rtol=0, atol=0)


def test_the_adapter_s_picture_is_the_stock_pipeline_s_from_an_image_and_an_empty_prompt(
    tiny, tmp_path
):
    """Text, null condition and the choice of hidden states at once."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
    from diffusers import UNet2DConditionModel as UNet
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    generator = tiny("ip-adapter")
    base, adapter = tmp_path / "stable-diffusion-v1-5", tmp_path / "IP-Adapter"
    encoder = CLIPVisionModelWithProjection.from_pretrained(adapter / "models" / "image_encoder")
    stock = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(base / "vae", low_cpu_mem_usage=False),
        text_encoder=CLIPTextModel.from_pretrained(base / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(base / "tokenizer"),
        unet=UNet.from_pretrained(base / "unet", low_cpu_mem_usage=False),
        scheduler=PNDMScheduler.from_pretrained(base / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=encoder,
        requires_safety_checker=False,
    )
    name = "ip-adapter-plus_sd15.safetensors"
    stock.load_ip_adapter(str(adapter), subfolder="models", weight_name=name)
    stock.set_progress_bar_config(disable=True)
    picture = photograph(224)
    draw = torch.Generator().manual_seed(0)
    image = stock(
        prompt="", ip_adapter_image=picture, num_inference_steps=2, generator=draw
    ).images[0]

    pixels = stock.feature_extractor(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        hidden = encoder(pixels, output_hidden_states=True).hidden_states[-2]
    stream = generator.accepts.split(hidden)
    (asset,) = generator.generate(stream, seed=0, steps=2)
    assert np.array_equal(asset.pixels, np.asarray(image))


def test_an_untrained_adapter_has_the_tensors_of_a_released_one(tiny):
    """`load_ip_adapter` makes them of the file's names and shapes; we, of the network's sizes."""
    from modalign_plugins.generators.diffusers.ip_adapter import NUM_IMAGE_TOKENS, add_adapter

    loaded = tiny("ip-adapter").pipeline.unet
    fresh = tiny_unet(cross_attention_dim=64)
    add_adapter(fresh, NUM_IMAGE_TOKENS)
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
        for unet in (loaded, fresh)
    ]
    assert shapes[0] == shapes[1]
    assert any("to_k_ip" in name for name in shapes[1])
    assert loaded.config.encoder_hid_dim_type == fresh.config.encoder_hid_dim_type


class Embedder(nn.Module):
    """In place of `ReduxImageEncoder`, whose hidden layer is three times its output wide."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(noise(1152, 4096) / 34)

    def forward(self, x):
        from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoderOutput

        return ReduxImageEncoderOutput(image_embeds=x @ self.weight)


class Siglip(nn.Module):
    """A picture's tokens, whatever the picture."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, tokens):
        super().__init__()
        self.tokens = nn.Parameter(tokens)

    def forward(self, **pixels):
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=self.tokens)


def test_flux_reads_what_its_own_prior_pipeline_prepares():
    """4096 and 768 are fixed in the stock prior, so the tiny transformer has these widths."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxPriorReduxPipeline,
    )
    from modalign_plugins.generators.diffusers.flux_redux import FluxRedux
    from transformers import SiglipImageProcessor

    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer, vae = tiny_flux(4096, 768), tiny_flux_vae()
    stock = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    hidden, embedder = noise(1, 729, 1152), Embedder()
    generator = FluxRedux(stock, embedder, size=16)
    prior = FluxPriorReduxPipeline(
        image_encoder=Siglip(hidden),
        feature_extractor=SiglipImageProcessor(),
        image_embedder=embedder,
    )
    prepared = prior(photograph(32))
    draw = torch.Generator().manual_seed(0)
    image = stock(
        **prepared,
        height=16,
        width=16,
        num_inference_steps=2,
        guidance_scale=2.5,
        generator=draw,
    ).images[0]
    (asset,) = generator.generate({"patches": hidden}, seed=0, steps=2)
    assert np.array_equal(asset.pixels, np.asarray(image))


def test_flux_contrasts_with_nothing(tiny):
    """Its guidance is a number: the network runs once per step, on one element."""
    generator, seen = tiny("flux-redux"), []
    generator.pipeline.transformer.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(kwargs), with_kwargs=True
    )
    generator.generate({"patches": noise(1, 729, 1152)}, seed=0, steps=3, guidance=7.0)
    assert len(seen) == 3
    assert all(len(call["hidden_states"]) == 1 for call in seen)
    assert all(call["guidance"].tolist() == [7.0] for call in seen)


@pytest.mark.parametrize(
    ("sizes", "place"), [({"pooled": 1280}, "pooled text"), ({"cross": 2048}, "cross-attention")]
)
def test_another_sdxl_is_refused(tiny, sizes, place):
    """The released SDXL reads 2048 and 1280: it is no decoder of EVA-CLIP tokens."""
    (size,) = sizes.values()
    with pytest.raises(WeightsError, match=f"{place} of its network, which reads {size}"):
        tiny("sdxl-eva", **sizes)
