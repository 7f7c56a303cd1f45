"""The official folder layout: what is written can be read, and what is wrong is named."""

from __future__ import annotations

import gc
import json
import weakref
from contextlib import contextmanager

import pytest
import torch
from modalign_plugins.generators.trellis import architectures, loader, modalign_generators
from modalign_plugins.generators.trellis.config import ModelFile, SamplerEntry
from modalign_plugins.generators.trellis.slat_flow import SLatFlowModel
from modalign_plugins.weights import sources
from safetensors.torch import load_file, save_file

from modalign import WeightsError

from .trellis_tiny import MODELS, PIPELINE, write_pipeline

CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture
def folder(tmp_path):
    write_pipeline(tmp_path / "tiny")
    return tmp_path / "tiny"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_written_pipeline_is_read_back(folder):
    models, config = loader.load_pipeline(folder, **CPU)
    stem = folder / PIPELINE.args.models["slat_flow_model"]
    stored = load_file(stem.with_suffix(".safetensors"))
    for name, tensor in models.latent_flow.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())
    assert config.structure.steps == 3
    assert models.normalization.std == (2.0,) * 4
    assert not any(p.requires_grad for p in models.latent_flow.parameters())
    assert not models.latent_flow.training


def test_half_precision_files_keep_norms_and_ends_in_full(folder):
    stored = load_file(folder / (PIPELINE.args.models["slat_decoder_mesh"] + ".safetensors"))
    assert stored["blocks.0.attn.to_qkv.weight"].dtype == torch.float16
    assert stored["upsample.0.out_layers.0.conv.weight"].dtype == torch.float16
    assert stored["upsample.0.act_layers.0.weight"].dtype == torch.float32
    assert stored["input_layer.weight"].dtype == torch.float32


def test_the_trunk_runs_in_the_type_asked_for(folder):
    models, _ = loader.load_pipeline(folder, device="cpu", dtype=torch.bfloat16)
    assert models.latent_flow.blocks[0].self_attn.to_qkv.weight.dtype == torch.bfloat16
    assert models.latent_flow.input_layer.weight.dtype == torch.float32
    x = torch.randn(1, 4, 2, 2, 2)
    v = models.structure_flow(x, torch.tensor([500.0]), torch.randn(1, 3, 8))
    assert v.dtype == torch.float32


def test_half_precision_weights_are_cast_one_by_one(folder, monkeypatch):
    """While a tensor is read, none of those read before is held in the file's own type."""
    alive, seen = [], []
    opened = loader._opened

    @contextmanager
    def watched(path):
        with opened(path) as tensors:

            class Watched:
                keys, get_slice = tensors.keys, tensors.get_slice

                def get_tensor(self, name):
                    gc.collect()
                    assert not [held for held in alive if held() is not None]
                    tensor = tensors.get_tensor(name)
                    if tensor.dtype == torch.float16:
                        alive.append(weakref.ref(tensor))
                    seen.append(name)
                    return tensor

            yield Watched()

    monkeypatch.setattr(loader, "_opened", watched)
    models, _ = loader.load_pipeline(folder, **CPU)
    assert seen == []  # files are checked by their headers
    network = models.structure_flow
    assert sorted(seen) == sorted(network.state_dict())
    assert {x.dtype for x in network.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_bytes_foretold_are_those_of_the_loaded_network(folder, dtype):
    stem = folder / PIPELINE.args.models["slat_flow_model"]
    stored = loader.open_model(stem, SLatFlowModel, device="cpu", dtype=dtype)
    state = stored.load().state_dict()
    assert stored.num_bytes == sum(x.numel() * x.element_size() for x in state.values())


def test_a_text_pipeline_takes_its_decoders_from_the_repository_it_names(folder, monkeypatch):
    """Older files name another owner; whoever is named is asked."""
    entry = PIPELINE.args.models["sparse_structure_decoder"]
    edit(
        folder / "pipeline.json",
        lambda c: c["args"]["models"].update(sparse_structure_decoder=f"old-owner/image/{entry}"),
    )
    asked = []

    def downloaded(owner, repository, files):
        asked.append((owner, repository, tuple(files)))
        return folder

    monkeypatch.setattr(sources, "downloaded", downloaded)
    spec = {spec.name: spec for spec in modalign_generators()}["trellis-text-base"]
    built = spec.build()
    assert all(owner == "trellis-text-base" for owner, _, _ in asked)
    by_repository = {}
    for _, repository, files in asked[1:]:
        by_repository.setdefault(repository, []).extend(files)
    assert by_repository["old-owner/image"] == [f"{entry}.json", f"{entry}.safetensors"]
    assert set(by_repository) == {"microsoft/TRELLIS-text-base", "old-owner/image"}
    first = asked[0][2]
    assert first[0] == "pipeline.json"
    assert "ckpts/slat_flow_txt_dit_B_64l8p2_fp16.safetensors" in first
    assert not any("gaussians" in file for files in by_repository.values() for file in files)
    built.models.require("slat_decoder_gs")
    assert asked[-1][2] == ("ckpts/gaussians.json", "ckpts/gaussians.safetensors")


def test_a_model_may_lie_in_the_folder_of_another_repository(folder):
    entry = PIPELINE.args.models["sparse_structure_decoder"]
    edit(
        folder / "pipeline.json",
        lambda c: c["args"]["models"].update(sparse_structure_decoder=f"owner/other/{entry}"),
    )
    loader.load_pipeline(folder, **CPU)  # found under its own path
    other = folder.parent / "other" / "ckpts"
    other.mkdir(parents=True)
    for file in folder.glob(f"{entry}*"):
        file.rename(other / file.name)
    loader.load_pipeline(folder, **CPU)  # found beside this repository


@pytest.mark.parametrize("file", ["pipeline.json", "ckpts/flow.json", "ckpts/flow.safetensors"])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(WeightsError, match=rf"{file} is missing"):
        loader.load_pipeline(folder, **CPU)


@pytest.mark.parametrize("file", ["pipeline.json", "ckpts/flow.json", "ckpts/flow.safetensors"])
def test_a_truncated_file_is_named(folder, file):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=rf"{file} is damaged"):
        loader.load_pipeline(folder, **CPU)


def test_a_pipeline_without_a_role_is_refused(folder):
    edit(folder / "pipeline.json", lambda c: c["args"]["models"].pop("slat_flow_model"))
    with pytest.raises(WeightsError, match="names no model for slat_flow_model"):
        loader.load_pipeline(folder, **CPU)


def test_a_pipeline_without_a_decoder_is_refused(folder):
    def drop(content):
        for role in ("slat_decoder_mesh", "slat_decoder_gs", "slat_decoder_rf"):
            content["args"]["models"].pop(role, None)

    edit(folder / "pipeline.json", drop)
    with pytest.raises(WeightsError, match="names no decoder; expected any of slat_decoder_mesh"):
        loader.load_pipeline(folder, **CPU)


def test_a_sampler_that_makes_no_sense_is_refused(folder):
    edit(folder / "pipeline.json", lambda c: c["args"]["slat_sampler"]["params"].update(steps=0))
    with pytest.raises(WeightsError, match=r"pipeline.json.*steps"):
        loader.load_pipeline(folder, **CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("out_layer.bias"), "out_layer.bias is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra is unknown"),
        (
            lambda t: t.update({"out_layer.bias": torch.zeros(7)}),
            r"out_layer.bias is \(7,\), expected \(4,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    path = folder / "ckpts/flow.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=message):
        loader.load_pipeline(folder, **CPU)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("SLatDreamer", {}, "unknown model class 'SLatDreamer'"),
        (None, {"colour": 1}, "has no argument 'colour'"),
        (None, {"pe_mode": "rope"}, "pe_mode = 'rope' is not supported"),
    ],
)
def test_an_architecture_we_lack_is_refused(name, args, message):
    model = MODELS["slat_flow_model"]
    file = ModelFile(name=name or model.name, args=model.args | args)
    with pytest.raises(WeightsError, match=message):
        architectures.build_model(file, "here.json")


def test_a_model_in_the_wrong_role_is_refused(folder):
    edit(
        folder / "pipeline.json",
        lambda c: c["args"]["models"].update(slat_flow_model="ckpts/decoder"),
    )
    with pytest.raises(WeightsError, match="needs a SLatFlowModel"):
        loader.load_pipeline(folder, **CPU)


def test_the_defaults_are_those_of_the_released_pipeline():
    settings = SamplerEntry().settings()
    assert settings.steps == 25
    assert settings.cfg_strength == 5
    assert settings.cfg_interval == (0.5, 1)
    assert settings.rescale_t == 3
