"""SigLIP encoders: layout, numbers against transformers and timm, pictures, weights."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest
import torch
from modalign_plugins.encoders import siglip2
from PIL import Image
from safetensors.torch import save_file

from modalign import EncoderSpec, WeightsError, installed
from modalign.testing import check_encoder

NAMES = [spec.name for spec in siglip2.modalign_encoders()]
TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "patch_size": 14,
    "image_size": 62,  # as 384 is, no multiple of 14
}
STREAM = siglip2.stream_of("tiny", TINY)
IN_TIMM = {
    r"embeddings\.patch_embedding\.(.+)": r"patch_embed.proj.\1",
    r"encoder\.layers\.(\d+)\.layer_norm(\d)\.(.+)": r"blocks.\1.norm\2.\3",
    r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.+)": r"blocks.\1.attn.proj.\2",
    r"encoder\.layers\.(\d+)\.mlp\.(.+)": r"blocks.\1.mlp.\2",
    r"post_layernorm\.(.+)": r"norm.\1",
}

# timm imports torchvision, which warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def named_for_timm(tensors):
    """A third naming of the same tensors: queries, keys and values in one, places with a batch."""
    named = {"pos_embed": tensors["embeddings.position_embedding.weight"][None]}
    for name, tensor in tensors.items():
        for pattern, new in IN_TIMM.items():
            if re.fullmatch(pattern, name):
                named[re.sub(pattern, new, name)] = tensor
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(.+)", name)
        if match:
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            named[f"blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat(parts)
    return named


@pytest.fixture(scope="module")
def encoder():
    """A small tower with every weight moved."""
    encoder = siglip2.SiglipEncoder(TINY, STREAM, "bicubic")
    draw = torch.Generator().manual_seed(0)
    for parameter in encoder.model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
    return encoder


@pytest.fixture(scope="module")
def pixels(encoder):
    return encoder.prepare([picture(62, 62), picture(99, 60, seed=1)])


@pytest.mark.parametrize(
    ("name", "side", "dim", "place"),
    [
        ("siglip-so400m-patch14-384", 27, 1152, 384),
        ("siglip2-so400m-patch14-384", 27, 1152, 384),
        ("siglip2-base-patch16-224", 14, 768, 224),
    ],
)
def test_every_tower_is_registered_with_its_space(name, side, dim, place):
    (patches,) = installed().get("encoders", name).stream.groups
    assert (patches.name, patches.shape, patches.dim) == ("patches", (side, side), dim)
    assert installed().get("encoders", name).stream.space == f"{name}/affine-layernorm@{place}"


def test_siglip_and_siglip2_share_a_layout_and_no_space():
    one, two = (
        installed().get("encoders", f"{name}-so400m-patch14-384").stream
        for name in ("siglip", "siglip2")
    )
    assert one.groups == two.groups
    assert one.space != two.space


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("siglip2-so400m-patch14-384", "vit_so400m_patch14_siglip_384"),
        ("siglip2-base-patch16-224", "vit_base_patch16_siglip_224"),
    ],
)
def test_full_size_on_the_meta_device_counts_as_timms_registered_network(name, twin):
    """timm's pooling head aside."""
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        tower = timm.create_model(twin)
    count = sum(
        tensor.numel()
        for key, tensor in tower.named_parameters()
        if not key.startswith("attn_pool")
    )
    encoder = installed().get("encoders", name).build(weights="random", device="meta")
    assert encoder.model.num_parameters() == count
    side = encoder.image_size
    encoder.stream.check(encoder.encode(torch.zeros(1, 3, side, side)))


def test_tokens_are_transformers_last_hidden_state_of_the_whole_model(encoder, pixels):
    """Through the class with both towers and the pooling head, from one file of all tensors."""
    from transformers import SiglipConfig, SiglipModel

    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    whole = SiglipModel(
        SiglipConfig(
            text_config={**text, "num_attention_heads": 2, "vocab_size": 32, "projection_size": 48},
            vision_config=TINY,
        )
    ).eval()
    tensors = siglip2.sources.file_tensors(whole)
    assert any(name.startswith("vision_model.head.") for name in tensors)
    ours = siglip2.SiglipEncoder(TINY, STREAM, "bicubic", tensors=tensors)
    with torch.no_grad():
        expected = whole.vision_model(pixels).last_hidden_state
    torch.testing.assert_close(ours.encode(pixels)["patches"], expected, rtol=0, atol=0)


def test_tokens_equal_timms_on_the_same_weights(encoder, pixels):
    timm = pytest.importorskip("timm")
    twin = timm.models.vision_transformer.VisionTransformer(
        img_size=62,
        patch_size=14,
        embed_dim=48,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        class_token=False,
        global_pool="",
        num_classes=0,
        act_layer="gelu_tanh",
    ).eval()
    named = named_for_timm(siglip2.sources.file_tensors(encoder.model))
    twin.load_state_dict(named, strict=True)
    with torch.no_grad():
        expected = twin.forward_features(pixels)
    torch.testing.assert_close(encoder.encode(pixels)["patches"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("resampling", ["bicubic", "bilinear"])
def test_preparing_equals_transformers_own_processor(resampling):
    from transformers import SiglipImageProcessorPil

    encoder = siglip2.SiglipEncoder(TINY, STREAM, resampling)
    theirs = SiglipImageProcessorPil(
        size={"height": 62, "width": 62}, resample=Image.Resampling[resampling.upper()]
    )
    for size in ((62, 62), (151, 80), (61, 97)):
        image = picture(*size)
        expected = theirs(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(encoder.prepare([image]), expected, rtol=0, atol=1e-6)


def test_the_filter_makes_other_pixels():
    pair = [
        siglip2.SiglipEncoder(TINY, STREAM, resampling) for resampling in ("bicubic", "bilinear")
    ]
    one, two = (encoder.prepare([picture(151, 80)]) for encoder in pair)
    assert (one - two).abs().max() > 0.1


def test_each_tower_uses_the_filter_of_its_published_preprocessor():
    assert {name: installed().get("encoders", name).preprocessing.split()[6] for name in NAMES} == {
        "siglip-so400m-patch14-384": "bicubic",
        "siglip2-so400m-patch14-384": "bilinear",
        "siglip2-base-patch16-224": "bilinear",
    }


def test_a_file_of_weights_is_read_with_and_without_the_towers_prefix(encoder, pixels, tmp_path):
    tensors = siglip2.sources.file_tensors(encoder.model)
    build = partial(siglip2._build, "tiny", TINY, STREAM, "bilinear")
    for prefix in ("", "vision_model."):
        folder = tmp_path / f"with-{prefix}"
        folder.mkdir()
        file = {prefix + name: tensor for name, tensor in tensors.items()}
        save_file({**file, "text_model.bias": torch.zeros(1)}, folder / "model.safetensors")
        again = build(weights=folder)
        expected = encoder.encode(pixels)["patches"]
        torch.testing.assert_close(again.encode(pixels)["patches"], expected, rtol=0, atol=0)


def test_missing_weights_say_what_to_fetch_and_how(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in NAMES:
        with pytest.raises(WeightsError, match=f"hf download google/{name} "):
            installed().get("encoders", name).build()


def test_the_contract_holds_for_random_weights():
    """Of a small network; the full ones take gigabytes."""

    def build(weights, **options):
        assert weights == "random"
        return siglip2.SiglipEncoder(TINY, STREAM, "bicubic", **options)

    check_encoder(EncoderSpec(name="tiny", build=build, stream=STREAM))
