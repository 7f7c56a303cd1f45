"""EVA-CLIP encoders: layout, numbers against timm, open_clip and the formula, pooling, weights."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from modalign_plugins.encoders import eva_clip
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from modalign import EncoderSpec, WeightsError, installed
from modalign.spaces import refusal, route
from modalign.testing import check_encoder

NETWORK = "eva02_enormous_patch14_clip_224"
TINY = {
    "img_size": 112,
    "patch_size": 14,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 2.0,
}
FULL, POOLED = (eva_clip.stream_of("tiny", TINY, pool) for pool in (1, eva_clip.POOL))

# timm imports torchvision, which warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def shaken(model):
    """Every weight moved, so that no zero-initialised part hides a path."""
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=draw), alpha=0.2)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def registered(timm):
    """timm's registered network, made small; norm and head of 24 included."""
    return shaken(timm.create_model(NETWORK, num_classes=24, **TINY))


@pytest.fixture(scope="module")
def encoder(registered):
    return eva_clip.EvaClipEncoder(TINY, FULL, tensors=registered.state_dict())


@pytest.fixture(scope="module")
def pixels(encoder):
    return encoder.prepare([picture(112, 112), picture(199, 130, seed=1)])


def test_both_are_registered_with_their_spaces():
    whole = installed().get("encoders", "eva-clip-e14-plus-full").stream
    small = installed().get("encoders", "eva-clip-e14-plus").stream
    assert whole.space == "eva-clip-e14-plus/hidden@448"
    assert small.space == "eva-clip-e14-plus/pooled@448"
    assert [(group.name, group.shape, group.dim) for group in whole.groups] == [
        ("patches", (32, 32), 1792)
    ]
    assert [(group.name, group.shape, group.dim) for group in small.groups] == [
        ("patches", (8, 8), 1792)
    ]


def test_the_recipe_of_blip3o_names_it_and_samples_64_tokens():
    name = installed().get("recipes", "blip3o").encoder
    stream = installed().get("encoders", name).stream
    assert (stream.num_tokens, stream.groups[0].dim) == (64, 1792)


@pytest.mark.parametrize("name", ["eva-clip-e14-plus", "eva-clip-e14-plus-full"])
def test_full_size_on_the_meta_device_counts_as_timms_registered_network(timm, name):
    """Its final norm and head aside: the 4.35 B of its model card."""
    with torch.device("meta"):
        tower = timm.create_model(NETWORK, img_size=448)
    whole = sum(parameter.numel() for parameter in tower.parameters())
    outside = sum(
        parameter.numel()
        for key, parameter in tower.named_parameters()
        if key.startswith(("norm.", "head."))
    )
    encoder = installed().get("encoders", name).build(weights="random", device="meta")
    count = sum(parameter.numel() for parameter in encoder.model.parameters())
    assert count == whole - outside
    assert round(count / 1e9, 2) == 4.35
    encoder.stream.check(encoder.encode(torch.zeros(1, 3, 448, 448)))


def test_open_clips_config_names_the_same_trunk(timm):
    open_clip = pytest.importorskip("open_clip")
    vision = open_clip.get_model_config("EVA02-E-14-plus")["vision_cfg"]
    assert vision["timm_model_name"] == NETWORK
    assert timm.get_pretrained_cfg(f"{NETWORK}.laion2b_plus").mean == eva_clip.MEAN


def test_tokens_are_the_last_block_of_timms_registered_network(registered, encoder, pixels):
    """Against its own record of intermediates, which no norm has touched."""
    (expected,) = registered.forward_intermediates(
        pixels, indices=1, norm=False, intermediates_only=True, output_fmt="NLC"
    )
    patches = encoder.encode(pixels)["patches"]
    torch.testing.assert_close(patches, expected, rtol=0, atol=0)
    assert (registered.forward_features(pixels)[:, 1:] - patches).abs().max() > 0.1


def test_tokens_follow_the_formula_of_post_norm_blocks(registered, encoder, pixels):
    """x + norm(attention(x)), then x + norm(mlp(x)); queries and values have biases, keys none."""
    weights = registered.state_dict()

    def linear(x, name, bias=None):
        bias = weights[f"{name}.bias"] if bias is None else bias
        return functional.linear(x, weights[f"{name}.weight"], bias)

    def norm(x, name):
        return functional.layer_norm(
            x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6
        )

    stem = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    x = functional.conv2d(pixels, *stem, stride=14).flatten(2).transpose(1, 2)
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], dim=1) + weights["pos_embed"]
    for index in range(2):
        block = f"blocks.{index}"
        q_bias, v_bias = weights[f"{block}.attn.q_bias"], weights[f"{block}.attn.v_bias"]
        bias = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
        parts = linear(x, f"{block}.attn.qkv", bias).unflatten(-1, (3, 4, 12))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each (B, heads, N, 12)
        scores = (q @ k.transpose(-2, -1) / 12**0.5).softmax(-1)
        mixed = (scores @ v).transpose(1, 2).flatten(2)
        x = x + norm(linear(mixed, f"{block}.attn.proj"), f"{block}.norm1")
        wide = functional.gelu(linear(x, f"{block}.mlp.fc1"))
        x = x + norm(linear(wide, f"{block}.mlp.fc2"), f"{block}.norm2")
    torch.testing.assert_close(encoder.encode(pixels)["patches"], x[:, 1:], rtol=1e-4, atol=1e-4)


def test_a_whole_open_clip_file_gives_the_same_tokens(timm, pixels, tmp_path, monkeypatch):
    """Through open_clip's own class around a trunk made small, text tower and projection too."""
    open_clip = pytest.importorskip("open_clip")
    small = partial(timm.create_model, **TINY)
    monkeypatch.setattr(open_clip.timm_model.timm, "create_model", small)
    config = open_clip.get_model_config("EVA02-E-14-plus")
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.model.CustomTextCLIP(24, {**config["vision_cfg"], "image_size": 112}, text)
    monkeypatch.undo()
    shaken(model)
    file = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(file, tmp_path / eva_clip.OPEN_CLIP)
    monkeypatch.setattr(eva_clip, "E14_PLUS", TINY)
    ours = eva_clip._build(FULL, weights=tmp_path)
    (expected,) = model.visual.trunk.forward_intermediates(
        pixels, indices=1, norm=False, intermediates_only=True, output_fmt="NLC"
    )
    torch.testing.assert_close(ours.encode(pixels)["patches"], expected, rtol=0, atol=0)


def test_places_of_a_smaller_grid_are_resampled_as_timm_does(timm, pixels, tmp_path):
    """A checkpoint of 56 px, loaded into 112 px by timm's own loader and by ours."""
    smaller = shaken(timm.create_model(NETWORK, num_classes=24, **{**TINY, "img_size": 56}))
    path = tmp_path / "model.safetensors"
    save_file(smaller.state_dict(), path)
    overlay = {"file": str(path), "num_classes": 24}
    options = {**TINY, "num_classes": 24, "pretrained_cfg_overlay": overlay}
    twin = timm.create_model(NETWORK, pretrained=True, **options).eval()
    ours = eva_clip.EvaClipEncoder(TINY, FULL, tensors=smaller.state_dict())
    assert ours.model.pos_embed.shape == (1, 65, 48)
    with torch.no_grad():
        (expected,) = twin.forward_intermediates(
            pixels, indices=1, norm=False, intermediates_only=True, output_fmt="NLC"
        )
    torch.testing.assert_close(ours.encode(pixels)["patches"], expected, rtol=0, atol=0)


def test_pooled_tokens_are_means_of_squares(registered, encoder, pixels):
    """By hand: rows 0-3 and columns 4-7 of 8 by 8 patches make the second token of 2 by 2."""
    small = eva_clip.EvaClipEncoder(TINY, POOLED, tensors=registered.state_dict())
    grid = encoder.encode(pixels)["patches"].unflatten(1, (8, 8))
    tokens = small.encode(pixels)["patches"]
    assert tokens.shape == (2, 4, 48)
    torch.testing.assert_close(tokens[:, 1], grid[:, :4, 4:].mean(dim=(1, 2)))
    torch.testing.assert_close(tokens[:, 2], grid[:, 4:, :4].mean(dim=(1, 2)))


def test_the_map_pools_and_says_that_it_leads_one_way():
    catalogue = installed().catalogue
    space_map = catalogue.space_maps["eva-clip-e14-plus-pooling"]
    whole = catalogue.encoders["eva-clip-e14-plus-full"].stream
    small = catalogue.encoders["eva-clip-e14-plus"].stream
    there = route(whole, small, catalogue.space_maps.values())
    assert there is not None
    assert there.one_way
    assert "averages of 4 by 4 patches" in there.words
    assert route(small, whole, catalogue.space_maps.values()) is None
    assert "no installed map joins them" in refusal(small, whole)
    forward, inverse = space_map.build(weights="random", device="cpu", dtype=torch.float32)
    assert inverse is None
    stream = {"patches": torch.arange(1024.0).view(1, 1024, 1).expand(1, 1024, 1792)}
    carried = there.build(weights="random")(stream)
    small.check(carried)
    rows, columns = torch.arange(4.0)[:, None] * 32, torch.arange(4.0)
    torch.testing.assert_close(carried["patches"][0, 0, 0], (rows + columns).mean())
    assert torch.equal(carried["patches"], forward(stream)["patches"])


def test_weights_of_another_model_are_refused(registered):
    tensors = registered.state_dict()
    with pytest.raises(WeightsError, match="another model"):
        eva_clip.EvaClipEncoder({**TINY, "depth": 3}, FULL, tensors=tensors)
    with pytest.raises(WeightsError, match="another shape"):
        eva_clip.EvaClipEncoder({**TINY, "mlp_ratio": 3.0}, FULL, tensors=tensors)


def test_missing_weights_say_what_to_fetch_and_how(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=f"hf download timm/{NETWORK}.laion2b_plus"):
        installed().get("encoders", "eva-clip-e14-plus").build()


def test_preparing_equals_open_clips_transform(encoder):
    open_clip = pytest.importorskip("open_clip")
    transform = open_clip.image_transform(112, is_train=False)
    for size in ((112, 112), (301, 150), (97, 211)):
        image = picture(*size)
        torch.testing.assert_close(encoder.prepare([image])[0], transform(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("stream", [FULL, POOLED], ids=["full", "pooled"])
def test_the_contract_holds_for_random_weights(stream):
    """Of a small network; the full one takes 17 GB."""

    def build(weights, **options):
        assert weights == "random"
        return eva_clip.EvaClipEncoder(TINY, stream, **options)

    check_encoder(EncoderSpec(name="tiny", build=build, stream=stream))
