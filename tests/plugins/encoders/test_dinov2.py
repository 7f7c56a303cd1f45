"""DINOv2 encoders: layout, numbers against transformers and timm, weights and their errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modalign_plugins.encoders import dinov2
from modalign_plugins.encoders.dinov2_names import to_timm, to_transformers
from modalign_plugins.encoders.dinov2_sizes import MINI_REG, MINI_STREAM, PUBLISHED, stream_of
from PIL import Image
from safetensors.torch import load_file, save_file

from modalign import TokenStreamSpec, WeightsError, installed
from modalign.spaces import route
from modalign.testing import check_encoder

SPECS = {spec.name: spec for spec in dinov2.modalign_encoders()}
MAPS = {space_map.name: space_map for space_map in dinov2.modalign_space_maps()}
TINY = {
    **MINI_REG,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
}
PLAIN = {name: value for name, value in TINY.items() if name != "num_register_tokens"}
VARIANTS = {
    "registers": TINY,
    "plain": PLAIN,
    "gated": {**PLAIN, "use_swiglu_ffn": True},
    "gated with registers": {**TINY, "use_swiglu_ffn": True},
}


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def shaken(encoder):
    """Every weight moved, so that no zero-initialised part hides a path."""
    draw = torch.Generator().manual_seed(0)
    for parameter in encoder.model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.05)
    return encoder


@pytest.fixture(scope="module")
def encoder():
    return shaken(SPECS["dinov2-mini-reg"].build(weights="random"))


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    """A small network of each kind: with registers or without, plain layers or the giant's."""
    sizes = VARIANTS[request.param]
    return sizes, shaken(dinov2.Dinov2Encoder(sizes, stream_of("tiny", sizes)))


@pytest.fixture(scope="module")
def pixels(encoder):
    return encoder.prepare([picture(112, 112), picture(300, 150, seed=1)])


def test_the_stream_is_class_token_then_registers_then_patches():
    shapes = {group.name: group.shape for group in SPECS["dinov2-vitl14-reg"].stream.groups}
    assert shapes == {"cls": (1,), "registers": (4,), "patches": (37, 37)}
    assert SPECS["dinov2-vitl14-reg"].stream.num_tokens == 1374
    assert SPECS["dinov2-vitl14-reg"].stream.space == "dinov2-vitl14-reg/layernorm@518"
    assert SPECS["dinov2-mini-reg"].stream.group("patches").shape == (8, 8)


def test_every_published_size_is_registered_with_its_space():
    catalogue = installed().catalogue.encoders
    for size, dim in {"s": 384, "b": 768, "l": 1024, "g": 1536}.items():
        plain, registers = f"dinov2-vit{size}14", f"dinov2-vit{size}14-reg"
        assert catalogue[plain].stream.names == ("cls", "patches")
        assert catalogue[plain].stream.num_tokens == 1370
        assert catalogue[registers].stream.names == ("cls", "registers", "patches")
        for name in (plain, registers):
            assert catalogue[name].stream.space == f"{name}/layernorm@518"
            assert {group.dim for group in catalogue[name].stream.groups} == {dim}
            assert catalogue[name].preprocessing.startswith("518 px")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_count_as_timms_registered_networks(name):
    """timm has no mask token and, beside registers, no position for the class token."""
    timm = pytest.importorskip("timm")
    size = {"s": "small", "b": "base", "l": "large", "g": "giant"}[name[10]]
    registers = "reg4_" if name.endswith("-reg") else ""
    with torch.device("meta"):
        twin = timm.create_model(f"vit_{size}_patch14_{registers}dinov2", num_classes=0)
    count = sum(parameter.numel() for parameter in twin.parameters())
    dim = PUBLISHED[name]["hidden_size"]
    encoder = SPECS[name].build(weights="random", device="meta")
    assert encoder.model.num_parameters() == count + dim * (2 if registers else 1)
    encoder.stream.check(encoder.encode(torch.zeros(1, 3, 518, 518)))


def test_every_kind_of_network_equals_transformers_hidden_states(variant):
    sizes, encoder = variant
    pixels = encoder.prepare([picture(56, 80), picture(90, 60, seed=1)])
    hidden = encoder.model(pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(encoder.raw_tokens(pixels), hidden, rtol=0, atol=0)
    encoder.stream.check(encoder.encode(pixels))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_every_kind_of_network_equals_timm_under_timms_names(variant):
    pytest.importorskip("timm")
    sizes, encoder = variant
    pixels = encoder.prepare([picture(56, 80), picture(90, 60, seed=1)])
    tensors = to_timm(dinov2.sources.file_tensors(encoder.model))
    twin = dinov2.Dinov2Encoder(sizes, encoder.stream, tensors=tensors, backend="timm")
    torch.testing.assert_close(twin.tokens(pixels), encoder.tokens(pixels), atol=1e-5, rtol=1e-5)


def test_torch_hubs_names_of_the_gated_layers_are_read():
    sizes = VARIANTS["gated"]
    encoder = shaken(dinov2.Dinov2Encoder(sizes, stream_of("tiny", sizes)))
    files = dinov2.sources.file_tensors(encoder.model)
    hub = {
        name.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3."): tensor
        for name, tensor in to_timm(files).items()
    }
    hub["mask_token"] = files["embeddings.mask_token"]
    again = to_transformers(hub, gated=True)
    assert set(again) == set(files)
    assert all(torch.equal(again[name], tensor) for name, tensor in files.items())


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
    twin = dinov2.Dinov2Encoder(MINI_REG, MINI_STREAM, tensors=tensors, backend="timm")
    torch.testing.assert_close(twin.tokens(pixels), encoder.tokens(pixels), atol=1e-5, rtol=1e-5)


def test_timm_names_carry_the_same_network(encoder, pixels):
    tensors = to_timm(dinov2.sources.file_tensors(encoder.model))
    again = dinov2.Dinov2Encoder(MINI_REG, MINI_STREAM, tensors=tensors)
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


def test_preparing_equals_transformers_own_processor(encoder):
    """Up to float32; where the margin is odd, its crop lies one pixel from torchvision's."""
    from transformers import BitImageProcessorPil

    theirs = BitImageProcessorPil(
        size={"shortest_edge": 112},
        crop_size={"height": 112, "width": 112},
        image_mean=dinov2.MEAN,
        image_std=dinov2.STD,
    )
    for size in ((112, 112), (301, 150), (97, 208)):
        image = picture(*size)
        expected = theirs(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(encoder.prepare([image]), expected, rtol=0, atol=1e-6)


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
    deeper = {**MINI_REG, "num_hidden_layers": 7}
    with pytest.raises(WeightsError, match="another model"):
        dinov2.Dinov2Encoder(deeper, MINI_STREAM, tensors=tensors)
    wider = {**MINI_REG, "mlp_ratio": 3}
    with pytest.raises(WeightsError, match="another shape"):
        dinov2.Dinov2Encoder(wider, MINI_STREAM, tensors=tensors)


def test_a_damaged_file_is_named(encoder, tmp_path):
    path = tmp_path / "model.safetensors"
    encoder.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="model.safetensors is damaged"):
        SPECS["dinov2-mini-reg"].build(weights=tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(WeightsError, match="nowhere"):
        SPECS["dinov2-mini-reg"].build(weights=tmp_path / "nowhere")


@pytest.fixture
def normed(encoder, tmp_path):
    """A weights file that holds a final norm and nothing else, and that norm."""
    draw = torch.Generator().manual_seed(1)
    norm = {
        "layernorm.weight": torch.randn(128, generator=draw).abs() + 0.1,
        "layernorm.bias": torch.randn(128, generator=draw),
    }
    path = tmp_path / "norm.safetensors"
    save_file(norm, path)
    return path, norm


def test_every_encoder_has_a_map_to_its_last_hidden_state():
    for name, spec in SPECS.items():
        space_map = installed().catalogue.space_maps[f"{name}-affine"]
        target = TokenStreamSpec(
            space=spec.stream.space.replace("/layernorm@", "/affine-layernorm@"),
            groups=spec.stream.groups,
        )
        assert (space_map.source_stream, space_map.target_stream) == (spec.stream, target)
        way = route(spec.stream, target, installed().catalogue.space_maps.values())
        assert way is not None
        assert not way.one_way


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_map_makes_transformers_last_hidden_state(encoder, pixels, tmp_path, scale):
    """Up to the epsilons 1e-5 and 1e-6 of the two norms, which tokens of variance 1 hardly feel."""
    path = tmp_path / "weights.safetensors"
    encoder.save(path)
    tensors = load_file(path)
    draw = torch.Generator().manual_seed(2)
    for name in ("layernorm.weight", "layernorm.bias"):
        tensors[name] = torch.randn(128, generator=draw)
    # The last block's own scale sets the variance of what is normed.
    tensors["encoder.layer.5.layer_scale2.lambda1"] *= scale
    save_file(tensors, path)
    encoder = SPECS["dinov2-mini-reg"].build(weights=path)
    forward, _ = MAPS["dinov2-mini-reg-affine"].build(weights=path)
    expected = encoder.model(pixels).last_hidden_state
    got = MAPS["dinov2-mini-reg-affine"].target_stream.pack(forward(encoder.encode(pixels)))
    variance = float(encoder.raw_tokens(pixels).var(-1).min())
    torch.testing.assert_close(
        got, expected, rtol=0, atol=1e-5 / variance * float(expected.abs().max()) + 1e-5
    )
    plain = encoder.stream.pack(encoder.encode(pixels))
    assert (plain - expected).abs().max() > 0.5  # the map is not the identity


def test_the_map_leads_there_and_back(encoder, pixels, normed):
    forward, inverse = MAPS["dinov2-mini-reg-affine"].build(weights=normed[0])
    stream = encoder.encode(pixels)
    for there, back in ((forward, inverse), (inverse, forward)):
        again = back(there(stream))
        for name, tokens in stream.items():
            torch.testing.assert_close(again[name], tokens, rtol=1e-5, atol=1e-5)


def test_the_map_reads_the_norm_and_nothing_else(encoder, pixels, normed):
    path, norm = normed
    forward, _ = MAPS["dinov2-mini-reg-affine"].build(weights=path)
    stream = encoder.encode(pixels)
    expected = stream["cls"] * norm["layernorm.weight"] + norm["layernorm.bias"]
    torch.testing.assert_close(forward(stream)["cls"], expected)
    renamed = {name.replace("layernorm", "norm"): tensor for name, tensor in norm.items()}
    save_file(renamed, path)  # as torch-hub and timm call it
    forward, _ = MAPS["dinov2-mini-reg-affine"].build(weights=path)
    torch.testing.assert_close(forward(stream)["cls"], expected)


def test_the_map_keeps_the_dtype_of_tokens(normed):
    forward, inverse = MAPS["dinov2-mini-reg-affine"].build(weights=normed[0])
    stream = {"cls": torch.ones(1, 1, 128, dtype=torch.bfloat16)}
    assert forward(stream)["cls"].dtype == inverse(stream)["cls"].dtype == torch.bfloat16


def test_a_random_norm_changes_nothing(encoder, pixels):
    stream = encoder.encode(pixels)
    forward, _ = MAPS["dinov2-mini-reg-affine"].build(weights="random")
    assert torch.equal(forward(stream)["patches"], stream["patches"])


def test_the_map_of_the_shipped_mini_makes_its_last_hidden_state(pixels):
    encoder = SPECS["dinov2-mini-reg"].build()
    forward, _ = MAPS["dinov2-mini-reg-affine"].build()
    got = encoder.stream.pack(forward(encoder.encode(pixels)))
    torch.testing.assert_close(got, encoder.model(pixels).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_a_file_without_a_norm_or_with_a_dead_one_is_refused(normed, tmp_path):
    path, norm = normed
    save_file({**norm, "layernorm.weight": torch.zeros(128)}, path)
    with pytest.raises(WeightsError, match="gain of 0"):
        MAPS["dinov2-mini-reg-affine"].build(weights=path)
    save_file({"layernorm.weight": torch.ones(128)}, path)
    with pytest.raises(WeightsError, match="no bias of a final norm"):
        MAPS["dinov2-mini-reg-affine"].build(weights=path)
