"""Weights that are missing, damaged or of another model are named, with what to do."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from modalign import WeightsError, installed

from .diffusers_tiny import WRITE, write


def spec_of(name):
    return installed().get("generators", name)


@pytest.mark.parametrize("name", WRITE)
def test_without_a_network_the_error_says_what_is_missing_and_how_to_get_it(name, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def offline(repository, allow_patterns, revision):
        asked.append(repository)
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(WeightsError, match=f"{name!r} needs .* cannot be downloaded") as error:
        spec_of(name).build(weights="pretrained")
    assert asked
    for repository in asked:
        assert f"hf download {repository} --include" in str(error.value)
        assert repository in spec_of(name).source or repository.endswith("-prior")


def test_only_safetensors_and_configurations_are_asked_for(monkeypatch):
    patterns = []

    def record(repository, allow_patterns, revision):
        patterns.extend(allow_patterns)
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", record)
    for name in WRITE:
        with pytest.raises(WeightsError):
            spec_of(name).build(weights="pretrained")
    kinds = {pattern.rpartition("/")[2].rpartition(".")[2] for pattern in patterns}
    assert kinds == {"json", "safetensors", "*"}
    assert [pattern for pattern in patterns if pattern.endswith("*")] == ["tokenizer/*"]


@pytest.mark.parametrize("name", WRITE)
def test_a_folder_without_the_files_is_refused_by_their_names(name, tmp_path):
    with pytest.raises(WeightsError, match=rf"{name!r} needs .*json.*lacks"):
        spec_of(name).build(weights=tmp_path)


@pytest.mark.parametrize("name", ["kandinsky-2.2", "sdxl-eva"])
def test_where_the_configuration_comes_with_the_weights_there_are_no_random_ones(name):
    with pytest.raises(WeightsError, match="comes with the weights of .*weights='pretrained'"):
        spec_of(name).build(weights="random", device="meta")


@pytest.fixture
def rae(tmp_path):
    write("rae-decoder", tmp_path)
    return tmp_path / "diffusion_pytorch_model.safetensors"


def build_rae(path):
    return spec_of("rae-decoder").build(weights=path.parent)


def test_damaged_weights_are_refused(rae):
    rae.write_bytes(rae.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=f"'rae-decoder' cannot read {rae.parent}"):
        build_rae(rae)


def test_missing_tensors_are_refused_and_never_filled_at_random(rae):
    tensors = load_file(rae)
    del tensors["decoder.decoder_pred.weight"]
    save_file(tensors, rae, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 tensors .*'decoder\.decoder_pred\.weight'"):
        build_rae(rae)


def test_tensors_of_another_shape_are_refused(rae):
    tensors = load_file(rae)
    tensors["decoder.decoder_pred.bias"] = torch.zeros(3)
    save_file(tensors, rae, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="cannot read"):
        build_rae(rae)


@pytest.mark.parametrize(
    "content",
    [
        '{"_class_name": "Nonsense"}',
        '{"_class_name": "AutoencoderKL"}',
        '{"_class_name": "__name__"}',
        "{}",
        "not JSON",
    ],
)
def test_a_scheduler_that_diffusers_lacks_is_refused(content, tmp_path):
    write("sdxl-eva", tmp_path)
    path = tmp_path / "diffusion-decoder" / "scheduler" / "scheduler_config.json"
    assert json.loads(path.read_text())["_class_name"] == "EulerDiscreteScheduler"
    path.write_text(content)
    with pytest.raises(WeightsError, match="no scheduler of diffusers"):
        spec_of("sdxl-eva").build(weights=tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "3"])
@pytest.mark.parametrize(
    ("name", "part"),
    [("kandinsky-2.2", "image_encoder"), ("ip-adapter", "text_encoder")],
)
def test_a_damaged_configuration_is_refused(name, part, content, tmp_path):
    write(name, tmp_path)
    (path,) = (p for p in tmp_path.rglob("config.json") if p.parent.name == part)
    path.write_text(content)
    with pytest.raises(WeightsError, match=f"'{name}' finds no usable .*config in {path.parent}"):
        spec_of(name).build(weights=tmp_path)


def test_nothing_is_printed_while_loading(tmp_path, capfd):
    write("ip-adapter", tmp_path)
    capfd.readouterr()
    spec_of("ip-adapter").build(weights=tmp_path)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "diffusers" not in printed.err
    assert "accelerate" not in printed.err
