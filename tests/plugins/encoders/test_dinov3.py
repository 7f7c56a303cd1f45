"""DINOv3 encoders: layout, numbers against transformers and timm, pictures, weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modalign_plugins.encoders import dinov3
from modalign_plugins.encoders.dinov3_names import to_timm, to_transformers
from PIL import Image
from safetensors.torch import save_file

from modalign import EncoderSpec, WeightsError, installed
from modalign.testing import check_encoder

TINY = {
    **dinov3.SIZES["dinov3-vits16"],
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "image_size": 64,
}
VARIANTS = {"plain": TINY, "gated": {**TINY, "use_gated_mlp": True, "hidden_act": "silu"}}
TIMM = {
    "dinov3-vits16": "vit_small_patch16_dinov3_qkvb",
    "dinov3-vitb16": "vit_base_patch16_dinov3_qkvb",
    "dinov3-vitl16": "vit_large_patch16_dinov3_qkvb",
    "dinov3-vith16plus": "vit_huge_plus_patch16_dinov3_qkvb",
}

# timm imports torchvision, which warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def shaken(encoder):
    """Every weight moved: no zero-initialised part hides a path, no token has a tiny variance."""
    draw = torch.Generator().manual_seed(0)
    for parameter in encoder.model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
    return encoder


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    """A small network of each kind."""
    sizes = VARIANTS[request.param]
    return sizes, shaken(dinov3.Dinov3Encoder(sizes, dinov3.stream_of("tiny", sizes)))


@pytest.fixture(scope="module")
def pixels(variant):
    return variant[1].prepare([picture(64, 64), picture(99, 70, seed=1)])


@pytest.mark.parametrize("name", dinov3.SIZES)
def test_every_size_is_registered_with_its_space(name):
    stream = installed().get("encoders", name).stream
    dim = {"s": 384, "b": 768, "l": 1024, "h": 1280}[name[10]]
    assert stream.space == f"{name}/layernorm@512"
    assert {group.name: group.shape for group in stream.groups} == {
        "cls": (1,),
        "registers": (4,),
        "patches": (32, 32),
    }
    assert {group.dim for group in stream.groups} == {dim}
    assert stream.num_tokens == 1029


@pytest.mark.parametrize("name", dinov3.SIZES)
def test_full_size_on_the_meta_device_counts_as_timms_registered_network(name):
    """timm has no mask token."""
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        twin = timm.create_model(TIMM[name], num_classes=0)
    count = sum(parameter.numel() for parameter in twin.parameters())
    encoder = installed().get("encoders", name).build(weights="random", device="meta")
    assert encoder.model.num_parameters() == count + dinov3.SIZES[name]["hidden_size"]
    encoder.stream.check(encoder.encode(torch.zeros(1, 3, 512, 512)))


def test_tokens_are_the_last_block_before_the_models_own_norm(variant, pixels):
    """Against transformers' own record of hidden states."""
    _, encoder = variant
    output = encoder.model(pixels, output_hidden_states=True)
    torch.testing.assert_close(encoder.raw_tokens(pixels), output.hidden_states[-1], rtol=0, atol=0)
    assert (encoder.raw_tokens(pixels) - output.last_hidden_state).abs().max() > 0.1


def test_every_token_has_mean_zero_and_variance_one(variant, pixels):
    tokens = variant[1].stream.pack(variant[1].encode(pixels))
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(tokens.shape[:2]), atol=1e-5, rtol=0)
    variance = tokens.var(-1, correction=0)
    torch.testing.assert_close(variance, torch.ones(tokens.shape[:2]), atol=1e-3, rtol=0)


def test_timm_and_transformers_compute_the_same_tokens(variant, pixels):
    pytest.importorskip("timm")
    sizes, encoder = variant
    tensors = dinov3.sources.file_tensors(encoder.model)
    twin = dinov3.Dinov3Encoder(sizes, encoder.stream, tensors=tensors, backend="timm")
    raw = encoder.raw_tokens(pixels)
    torch.testing.assert_close(twin.raw_tokens(pixels), raw, rtol=0, atol=1e-5 * raw.abs().max())
    for name, tokens in encoder.encode(pixels).items():
        torch.testing.assert_close(twin.encode(pixels)[name], tokens, rtol=0, atol=2e-5)


def test_timm_names_carry_the_same_network(variant):
    files = dinov3.sources.file_tensors(variant[1].model)
    again = to_transformers(to_timm(files))
    assert set(again) == set(files)
    for name in set(files) - {"embeddings.mask_token"}:
        assert torch.equal(again[name], files[name])


def test_published_names_pass_through_unchanged(variant):
    files = dinov3.sources.file_tensors(variant[1].model)
    assert list(to_transformers(files)) == list(files)


def test_biases_that_timm_leaves_out_are_zero(variant):
    files = dinov3.sources.file_tensors(variant[1].model)
    bare = {
        name: tensor
        for name, tensor in to_timm(files).items()
        if not name.endswith(("q_bias", "v_bias"))
    }
    again = to_transformers(bare)
    assert set(again) == set(files)
    assert not again["layer.0.attention.q_proj.bias"].any()
    assert again["layer.0.attention.o_proj.bias"].any()


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be one of"):
        dinov3.Dinov3Encoder(TINY, dinov3.stream_of("tiny", TINY), backend="jax")


def test_weights_are_read_from_a_folder_of_either_library(variant, pixels, tmp_path, monkeypatch):
    sizes, encoder = variant
    monkeypatch.setitem(dinov3.SIZES, "dinov3-vits16", sizes)
    monkeypatch.setitem(dinov3.STREAMS, "dinov3-vits16", encoder.stream)
    files = dinov3.sources.file_tensors(encoder.model)
    for library, tensors in (("transformers", files), ("timm", to_timm(files))):
        folder = tmp_path / library
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        again = installed().get("encoders", "dinov3-vits16").build(weights=folder)
        torch.testing.assert_close(
            again.raw_tokens(pixels), encoder.raw_tokens(pixels), rtol=0, atol=0
        )


def test_weights_of_another_model_are_refused(variant):
    sizes, encoder = variant
    tensors = dinov3.sources.file_tensors(encoder.model)
    with pytest.raises(WeightsError, match="another model"):
        dinov3.Dinov3Encoder({**sizes, "num_hidden_layers": 4}, encoder.stream, tensors=tensors)


def test_missing_weights_say_what_to_fetch_and_how(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="facebook/dinov3-vitl16-pretrain-lvd1689m"):
        installed().get("encoders", "dinov3-vitl16").build()


def test_preparing_equals_timms_transform():
    """timm's own evaluation transform of the registered network, at another size."""
    timm = pytest.importorskip("timm")
    config = timm.models.eva.default_cfgs["vit_large_patch16_dinov3"].default.to_dict()
    data = timm.data.resolve_data_config({"input_size": (3, 64, 64)}, pretrained_cfg=config)
    transform = timm.data.create_transform(**data, is_training=False)
    encoder = dinov3.Dinov3Encoder(TINY, dinov3.stream_of("tiny", TINY))
    for size in ((64, 64), (151, 80), (61, 97), (97, 211)):
        image = picture(*size)
        torch.testing.assert_close(encoder.prepare([image])[0], transform(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["transformers", "timm"])
def test_the_contract_holds_for_random_weights(backend):
    """Of a small network; the full ones take gigabytes."""
    stream = dinov3.stream_of("tiny", TINY)

    def build(weights, **options):
        assert weights == "random"
        return shaken(dinov3.Dinov3Encoder(TINY, stream, backend=backend, **options))

    check_encoder(EncoderSpec(name="tiny", build=build, stream=stream))
