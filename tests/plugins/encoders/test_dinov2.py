"""DINOv2 encoders: layout, numbers against transformers and timm, weights and their errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modalign_plugins.encoders import dinov2
from modalign_plugins.encoders.dinov2_names import to_timm, to_transformers
from PIL import Image

from modalign import WeightsError
from modalign.testing import check_encoder

SPECS = {spec.name: spec for spec in dinov2.modalign_encoders()}


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def encoder():
    """The mini with every weight moved, so that no zero-initialised part hides a path."""
    encoder = SPECS["dinov2-mini-reg"].build(weights="random")
    draw = torch.Generator().manual_seed(0)
    for parameter in encoder.model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.05)
    return encoder


@pytest.fixture(scope="module")
def pixels(encoder):
    return encoder.prepare([picture(112, 112), picture(300, 150, seed=1)])


def test_the_stream_is_class_token_then_registers_then_patches():
    shapes = {group.name: group.shape for group in SPECS["dinov2-vitl14-reg"].stream.groups}
    assert shapes == {"cls": (1,), "registers": (4,), "patches": (37, 37)}
    assert SPECS["dinov2-vitl14-reg"].stream.num_tokens == 1374
    assert SPECS["dinov2-vitl14-reg"].stream.space == "dinov2-vitl14-reg/layernorm@518"
    assert SPECS["dinov2-mini-reg"].stream.group("patches").shape == (8, 8)


def test_tokens_are_the_last_block_before_the_models_own_norm(encoder, pixels):
    """Against transformers' own record of hidden states."""
    hidden = encoder.model(pixels, output_hidden_states=True)
    torch.testing.assert_close(encoder.raw_tokens(pixels), hidden.hidden_states[-1], rtol=0, atol=0)
    assert (encoder.raw_tokens(pixels) - hidden.last_hidden_state).abs().max() > 0.1


def test_every_token_has_mean_zero_and_variance_one(encoder, pixels):
    tokens = encoder.tokens(pixels)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(tokens.shape[:2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        tokens.var(-1, correction=0), torch.ones(tokens.shape[:2]), atol=1e-3, rtol=0
    )


def test_encode_returns_the_declared_stream_without_gradient(encoder, pixels):
    stream = encoder.encode(pixels)
    encoder.stream.check(stream)
    assert not any(tokens.requires_grad for tokens in stream.values())
    weight = torch.ones((), requires_grad=True)
    (stream["cls"] * weight).sum().backward()  # a constant of autograd, not an inference tensor


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_timm_and_transformers_compute_the_same_tokens(encoder, pixels):
    pytest.importorskip("timm")
    tensors = dinov2.sources.file_tensors(encoder.model)
    twin = dinov2.Dinov2Encoder(
        dinov2.MINI_REG, dinov2.MINI_STREAM, tensors=tensors, backend="timm"
    )
    torch.testing.assert_close(twin.tokens(pixels), encoder.tokens(pixels), atol=1e-5, rtol=1e-5)


def test_timm_names_carry_the_same_network(encoder, pixels):
    tensors = to_timm(dinov2.sources.file_tensors(encoder.model))
    again = dinov2.Dinov2Encoder(dinov2.MINI_REG, dinov2.MINI_STREAM, tensors=tensors)
    torch.testing.assert_close(again.tokens(pixels), encoder.tokens(pixels), atol=1e-5, rtol=1e-5)


def test_published_names_pass_through_unchanged(encoder):
    tensors = dinov2.sources.file_tensors(encoder.model)
    assert list(to_transformers(tensors)) == list(tensors)


def test_saved_weights_load_to_the_same_numbers(encoder, pixels, tmp_path):
    path = tmp_path / "weights.safetensors"
    encoder.save(path)
    again = SPECS["dinov2-mini-reg"].build(weights=path)
    torch.testing.assert_close(again.tokens(pixels), encoder.tokens(pixels), rtol=0, atol=0)


def test_preparing_resizes_the_shorter_side_and_cuts_the_middle(encoder):
    """A picture whose thirds differ: only the middle one survives the crop."""
    wide = Image.new("RGB", (336, 112), "white")
    wide.paste("black", (112, 0, 224, 112))
    black = -torch.tensor(dinov2.MEAN) / torch.tensor(dinov2.STD)
    torch.testing.assert_close(
        encoder.prepare([wide])[0], black[:, None, None].expand(3, 112, 112), rtol=0, atol=1e-6
    )


def test_preparing_equals_torchvisions_transforms(encoder):
    """A second implementation, where it is installed."""
    transforms = pytest.importorskip("torchvision.transforms")
    resize = transforms.Resize(112, interpolation=transforms.InterpolationMode.BICUBIC)
    normalise = transforms.Normalize(dinov2.MEAN, dinov2.STD)
    steps = [resize, transforms.CenterCrop(112), transforms.ToTensor(), normalise]
    for size in ((112, 112), (301, 150), (97, 211)):
        image = picture(*size)
        expected = transforms.Compose(steps)(image)
        torch.testing.assert_close(encoder.prepare([image])[0], expected, rtol=0, atol=1e-6)


def test_the_contract_holds_for_random_weights():
    check_encoder(SPECS["dinov2-mini-reg"])


def test_full_size_builds_on_the_meta_device():
    encoder = SPECS["dinov2-vitl14-reg"].build(weights="random", device="meta")
    assert encoder.model.num_parameters() == 304_372_736
    encoder.stream.check(encoder.encode(torch.zeros(1, 3, 518, 518)))


def test_missing_weights_say_what_to_fetch_and_how(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="hf download facebook/dinov2-with-registers-large"):
        SPECS["dinov2-vitl14-reg"].build()


def test_weights_of_another_model_are_refused(encoder):
    tensors = dinov2.sources.file_tensors(encoder.model)
    deeper = {**dinov2.MINI_REG, "num_hidden_layers": 7}
    with pytest.raises(WeightsError, match="another model"):
        dinov2.Dinov2Encoder(deeper, dinov2.MINI_STREAM, tensors=tensors)
    wider = {**dinov2.MINI_REG, "mlp_ratio": 3}
    with pytest.raises(WeightsError, match="another shape"):
        dinov2.Dinov2Encoder(wider, dinov2.MINI_STREAM, tensors=tensors)


def test_a_damaged_file_is_named(encoder, tmp_path):
    path = tmp_path / "model.safetensors"
    encoder.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="model.safetensors is damaged"):
        SPECS["dinov2-mini-reg"].build(weights=tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(WeightsError, match="nowhere"):
        SPECS["dinov2-mini-reg"].build(weights=tmp_path / "nowhere")
