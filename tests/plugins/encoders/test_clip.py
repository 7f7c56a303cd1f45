"""CLIP encoders: places they are read at, numbers against open_clip, activations, pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modalign_plugins.encoders import clip
from PIL import Image
from safetensors.torch import save_file

from modalign import EncoderSpec, WeightsError, installed
from modalign.testing import check_encoder

NAMES = {spec.name for spec in clip.modalign_encoders()}
# name: space, groups, width
EXPECTED = {
    "clip-vitb32-pooled": ("clip-vitb32/projected@224", {"cls": (1,)}, 512),
    "clip-vitl14": ("clip-vitl14/hidden@224", {"cls": (1,), "patches": (16, 16)}, 1024),
    "clip-vitl14-pooled": ("clip-vitl14/projected@224", {"cls": (1,)}, 768),
    "clip-vith14": ("clip-vith14/penultimate@224", {"cls": (1,), "patches": (16, 16)}, 1280),
    "clip-vith14-pooled": ("clip-vith14/projected@224", {"cls": (1,)}, 1024),
    "clip-vitbigg14-pooled": ("clip-vitbigg14/projected@224", {"cls": (1,)}, 1280),
}
OPEN_CLIP = {
    "clip-vitb32": "ViT-B-32-quickgelu",
    "clip-vitl14": "ViT-L-14-quickgelu",
    "clip-vith14": "ViT-H-14",
    "clip-vitbigg14": "ViT-bigG-14",
}
TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "patch_size": 14,
    "projection_dim": 24,
    "hidden_act": "quick_gelu",
    "image_size": 56,
}
READINGS = ("hidden", "penultimate", "projected")

# open_clip imports torchvision, which warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoder_of(reading, tensors=None, **changes):
    sizes = {**TINY, **changes}
    return clip.ClipEncoder(sizes, clip.stream_of("tiny", sizes, reading), reading, tensors=tensors)


@pytest.fixture(scope="module")
def open_clip():
    return pytest.importorskip("open_clip")


@pytest.fixture(scope="module", params=[True, False], ids=["quick_gelu", "gelu"])
def theirs(open_clip, request):
    """A small CLIP of open_clip, text tower and all, with every weight moved."""
    with torch.random.fork_rng():
        model = open_clip.model.CLIP(
            embed_dim=24,
            vision_cfg={
                "image_size": 56,
                "layers": 3,
                "width": 48,
                "head_width": 12,
                "patch_size": 14,
            },
            text_cfg={"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1},
            quick_gelu=request.param,
        )
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
    return model.eval().requires_grad_(False), "quick_gelu" if request.param else "gelu"


@pytest.fixture(scope="module")
def pixels():
    return encoder_of("hidden").prepare([picture(56, 70), picture(99, 60, seed=1)])


@pytest.mark.parametrize("name", EXPECTED)
def test_every_tower_is_registered_with_its_space(name):
    spec = installed().get("encoders", name)
    space, shapes, dim = EXPECTED[name]
    assert spec.stream.space == space
    assert {group.name: group.shape for group in spec.stream.groups} == shapes
    assert {group.dim for group in spec.stream.groups} == {dim}


def test_no_tower_is_left_untested():
    assert set(EXPECTED) == NAMES


@pytest.mark.parametrize("network", OPEN_CLIP)
def test_sizes_and_activation_are_those_of_open_clips_config(open_clip, network):
    """The name without "quickgelu" would run OpenAI's weights with the wrong activation."""
    config = open_clip.get_model_config(OPEN_CLIP[network])
    vision, sizes = config["vision_cfg"], clip.SIZES[network]
    heads = vision["width"] // vision.get("head_width", 64)
    assert sizes == {
        "hidden_size": vision["width"],
        "num_hidden_layers": vision["layers"],
        "num_attention_heads": heads,
        "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4)),
        "patch_size": vision["patch_size"],
        "projection_dim": config["embed_dim"],
        "hidden_act": "quick_gelu" if config.get("quick_gelu", False) else "gelu",
        "image_size": vision["image_size"],
    }


@pytest.mark.parametrize("network", OPEN_CLIP)
def test_full_size_on_the_meta_device_counts_as_open_clips_tower(open_clip, network):
    config = open_clip.get_model_config(OPEN_CLIP[network])
    with torch.device("meta"):
        tower = open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"])
    encoder = next(
        spec.build(weights="random", device="meta")
        for spec in clip.modalign_encoders()
        if spec.stream.space.startswith(f"{network}/")
    )
    count = sum(parameter.numel() for parameter in tower.parameters())
    assert encoder.model.num_parameters() == count
    encoder.stream.check(encoder.encode(torch.zeros(1, 3, 224, 224)))


def test_tokens_equal_open_clips_on_the_same_weights(theirs, pixels):
    """open_clip's own record of block outputs: last, and last but one."""
    model, act = theirs
    blocks = model.visual.forward_intermediates(
        pixels, indices=2, output_fmt="NLC", output_extra_tokens=True
    )
    for place, reading in ((-2, "penultimate"), (-1, "hidden")):
        encoder = encoder_of(reading, tensors=model.state_dict(), hidden_act=act)
        stream = encoder.encode(pixels)
        patches = blocks["image_intermediates"][place]
        cls = blocks["image_intermediates_prefix"][place]
        torch.testing.assert_close(stream["patches"], patches, rtol=0, atol=2e-5)
        torch.testing.assert_close(stream["cls"], cls, rtol=0, atol=2e-5)


def test_the_pooled_vector_equals_open_clips_on_the_same_weights(theirs, pixels):
    model, act = theirs
    encoder = encoder_of("projected", tensors=model.state_dict(), hidden_act=act)
    expected = model.encode_image(pixels)
    torch.testing.assert_close(encoder.encode(pixels)["cls"][:, 0], expected, rtol=0, atol=2e-5)


def test_the_other_activation_makes_other_numbers(theirs, pixels):
    model, act = theirs
    other = {"gelu": "quick_gelu", "quick_gelu": "gelu"}[act]
    encoder = encoder_of("projected", tensors=model.state_dict(), hidden_act=other)
    expected = model.encode_image(pixels)
    assert (encoder.encode(pixels)["cls"][:, 0] - expected).abs().max() > 1e-3


@pytest.mark.parametrize("reading", READINGS)
def test_transformers_own_outputs_are_what_is_read(pixels, reading):
    encoder = encoder_of(reading)
    output = encoder.model(pixels, output_hidden_states=True)
    expected = {
        "hidden": output.hidden_states[-1],
        "penultimate": output.hidden_states[-2],
        "projected": output.image_embeds[:, None],
    }
    tokens = encoder.stream.pack(encoder.encode(pixels))
    torch.testing.assert_close(tokens, expected[reading], rtol=0, atol=0)
    assert torch.equal(output.last_hidden_state, output.hidden_states[-1])  # no norm in between


def test_weights_are_read_from_a_file_of_either_library(theirs, pixels, tmp_path, monkeypatch):
    """A whole open_clip file, text tower and all, or transformers' vision tower."""
    model, act = theirs
    sizes = {**TINY, "hidden_act": act}
    monkeypatch.setitem(clip.SIZES, "clip-vitl14", sizes)
    build = clip._build
    stream = clip.stream_of("tiny", sizes, "hidden")
    whole = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(whole, tmp_path / clip.WEIGHTS)
    first = build("clip-vitl14", stream, "hidden", weights=tmp_path)
    assert isinstance(first, clip.ClipEncoder)
    other = tmp_path / "transformers"
    other.mkdir()
    save_file(clip.sources.file_tensors(first.model), other / "model.safetensors")
    again = build("clip-vitl14", stream, "hidden", weights=other)
    expected = first.encode(pixels)["patches"]
    torch.testing.assert_close(again.encode(pixels)["patches"], expected, rtol=0, atol=0)


def test_weights_of_another_tower_are_refused(theirs):
    model, _ = theirs
    with pytest.raises(WeightsError, match="another model"):
        encoder_of("hidden", tensors=model.state_dict(), num_hidden_layers=4)


def test_missing_weights_say_what_to_fetch_and_how(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K"):
        installed().get("encoders", "clip-vith14").build()


def test_preparing_equals_open_clips_transform(open_clip):
    """Up to float32, also where a margin is odd."""
    transform = open_clip.image_transform(56, is_train=False)
    encoder = encoder_of("hidden")
    for size in ((56, 56), (151, 80), (61, 97), (97, 211)):
        image = picture(*size)
        torch.testing.assert_close(encoder.prepare([image])[0], transform(image), rtol=0, atol=1e-6)


def test_preparing_equals_transformers_own_processor():
    """Exact where the margin is even; an odd one it rounds the other way than torchvision."""
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    )
    encoder = encoder_of("hidden")
    for size in ((56, 56), (151, 80), (56, 90)):
        image = picture(*size)
        expected = processor(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(encoder.prepare([image]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("reading", READINGS)
def test_the_contract_holds_for_random_weights(reading):
    """Of a small network; the full ones take gigabytes."""
    stream = clip.stream_of("tiny", TINY, reading)

    def build(weights, **options):
        assert weights == "random"
        return clip.ClipEncoder(TINY, stream, reading, **options)

    check_encoder(EncoderSpec(name="tiny", build=build, stream=stream))
