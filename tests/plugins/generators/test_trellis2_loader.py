"""The official folder layout of TRELLIS.2: what is written can be read, what is wrong is named."""

from __future__ import annotations

import json

import pytest
import torch
from modalign_plugins.generators.trellis.trellis2 import Trellis2Config, loader, modalign_generators
from modalign_plugins.generators.trellis.trellis2.decoder import ShapeDecoder
from modalign_plugins.generators.trellis.trellis2.sizes import PIPELINE as RELEASED
from safetensors.torch import load_file, save_file

from modalign import WeightsError

from .trellis2_tiny import write_pipeline

CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture
def folder(tmp_path):
    write_pipeline(tmp_path / "tiny")
    return tmp_path / "tiny"


def load(folder, **changes):
    return loader.load_networks(folder, loader.read_pipeline(folder), **CPU | changes)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_written_pipeline_is_read_back(folder):
    networks, config = load(folder), Trellis2Config.of(loader.read_pipeline(folder))
    stored = load_file(folder / "ckpts/texture_flow.safetensors")
    flow = networks.texture_flow()
    assert set(stored) == set(flow.state_dict()) | {"rope_phases"}
    for name, tensor in flow.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())
    assert not flow.training
    assert not any(p.requires_grad for p in flow.parameters())
    assert config.structure.guidance_rescale == 0.5
    assert config.texture_normalization.std == (3.0,) * 4


def test_a_sparse_convolution_is_found_one_level_higher(folder):
    """As the official files have it, and as TRELLIS's do."""
    path = folder / "ckpts/shape.safetensors"
    stored = load_file(path)
    assert "blocks.0.0.conv.weight" in stored
    high = load(folder).shape_decoder().state_dict()
    save_file({name: tensor.float() for name, tensor in high.items()}, path)
    assert "blocks.0.0.conv.conv.weight" in load_file(path)
    deep = load(folder).shape_decoder().state_dict()
    assert all(torch.equal(high[name], deep[name]) for name in high)
    assert torch.equal(high["blocks.0.1.conv1.conv.bias"], stored["blocks.0.1.conv1.bias"].float())


def test_weights_go_straight_to_their_type(folder):
    types = {
        name: tensor.dtype
        for name, tensor in load(folder, dtype=torch.bfloat16).shape_decoder().state_dict().items()
    }
    assert types["blocks.0.0.conv.conv.weight"] == torch.bfloat16
    assert types["blocks.0.1.to_subdiv.weight"] == torch.bfloat16
    assert types["blocks.0.0.norm.weight"] == torch.float32
    assert types["from_latent.weight"] == types["output_layer.weight"] == torch.float32


def test_each_call_reads_the_weights_anew(folder):
    networks = load(folder)
    assert networks.shape_flow() is not networks.shape_flow()


def test_a_network_of_another_repository_is_found_beside_in_or_where_it_is_said_to_be(folder):
    load(folder)  # beside: ../other
    elsewhere = folder.parent / "elsewhere"
    (folder.parent / "other").rename(elsewhere)
    with pytest.raises(WeightsError, match=r"decoder\.json is missing"):
        load(folder)
    networks = load(folder, others={"somebody/other": elsewhere})
    assert networks.structure_decoder() is not None
    for file in (elsewhere / "ckpts").iterdir():
        file.rename(folder / "ckpts" / file.name)
    load(folder)


def test_the_released_pipeline_needs_two_repositories():
    files = loader.files_by_repository(RELEASED, "microsoft/TRELLIS.2-4B")
    assert set(files) == {"microsoft/TRELLIS.2-4B", "microsoft/TRELLIS-image-large"}
    assert files["microsoft/TRELLIS-image-large"] == [
        "ckpts/ss_dec_conv3d_16l8_fp16.json",
        "ckpts/ss_dec_conv3d_16l8_fp16.safetensors",
    ]
    assert len(files["microsoft/TRELLIS.2-4B"]) == 1 + 2 * 5


@pytest.mark.parametrize("file", ["pipeline.json", "ckpts/shape.json", "ckpts/shape.safetensors"])
def test_a_missing_or_truncated_file_is_named_before_any_weight_is_read(folder, file):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=rf"{file} is damaged"):
        load(folder)
    (folder / file).unlink()
    with pytest.raises(WeightsError, match=rf"{file} is missing"):
        load(folder)


def test_a_pipeline_without_a_role_or_a_scale_is_refused(folder):
    """The means and deviations of the latents come from this file alone."""
    path = folder / "pipeline.json"
    edit(path, lambda c: c["args"]["models"].pop("tex_slat_decoder"))
    with pytest.raises(WeightsError, match="names no model for tex_slat_decoder"):
        load(folder)
    edit(path, lambda c: c["args"].pop("shape_slat_normalization"))
    with pytest.raises(WeightsError, match=r"pipeline.json.*args.shape_slat_normalization"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("output_layer.bias"), "output_layer.bias is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra is unknown"),
        (
            lambda t: t.update({"blocks.0.0.conv.bias": torch.zeros(7)}),
            r"blocks.0.0.conv.bias is \(7,\), expected \(32,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named_as_the_file_names_them(folder, change, message):
    path = folder / "ckpts/shape.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=message):
        load(folder)


def test_a_model_in_the_wrong_role_is_refused(folder):
    edit(
        folder / "pipeline.json",
        lambda c: c["args"]["models"].update(shape_slat_decoder="ckpts/texture"),
    )
    with pytest.raises(WeightsError, match=f"needs a {ShapeDecoder.__name__}"):
        load(folder)


def test_a_folder_of_the_user_s_is_built_as_it_is(folder):
    (spec,) = modalign_generators()
    built = spec.build(weights=folder)
    assert built.config.shape.steps == 3
    with pytest.raises(WeightsError, match=r"pipeline\.json is missing"):
        spec.build(weights=folder / "nowhere")
