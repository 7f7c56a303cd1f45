"""Qwen3-VL adapters: DeepStack through the cached read, layers, prompt states, sizes, weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from modalign_plugins.vlms import qwen3_vl
from modalign_plugins.vlms.qwen_vl_loading import adapter_of, spec_of
from modalign_plugins.vlms.qwen_vl_prompts import PictureSize
from modalign_plugins.vlms.qwen_vl_sizes import Sizes
from PIL import Image

from modalign import Prompt, PromptError, WeightsError
from modalign.testing import check_vlm

SPECS = {spec.name: spec for spec in qwen3_vl.modalign_vlms()}
TINY = Sizes(
    name="qwen3-vl-tiny",
    summary="4 layers, 2 of them fed by the vision tower",
    family="Qwen3VL",
    text={
        "vocab_size": 272,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
    },
    vision={
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [1, 2],
        "out_hidden_size": 48,
    },
    tied=True,
    special_ids=tuple(range(256, 265)),
    picture=PictureSize(side=64, patch=16, mean=qwen3_vl.HALF, std=qwen3_vl.HALF),
    max_positions=512,
    source="random",
    license="none",
)


def picture(seed, size=(64, 64)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PROMPTS = [
    Prompt("a red mug"),
    Prompt("a small green lamp on a pine table, next to a large blue chair"),
    Prompt("make it red", (picture(0),)),
    Prompt("between these", (picture(1, (100, 80)), picture(2))),
]


def moved(**options):
    """A tiny adapter with every weight moved, so that no zero or one hides a path."""
    torch.manual_seed(0)
    adapter = adapter_of(TINY, weights="random", **options)
    draw = torch.Generator().manual_seed(0)
    for parameter in adapter.model.parameters():
        noise = torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
        parameter.data.add_(noise, alpha=0.05)
    return adapter


@pytest.fixture(scope="module", params=["reference", "native"])
def adapter(request):
    return moved(positions=request.param, dtype=torch.float64)


@pytest.fixture
def soft():
    draw = torch.Generator().manual_seed(1)
    return torch.randn(1, 6, 48, generator=draw, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:2], PROMPTS[2:3] * 2, PROMPTS[3:]])
def test_the_cached_read_equals_the_plain_path_in_value_and_gradient(adapter, soft, prompts):
    """The second implementation runs whole rows with autograd, soft tokens in their middle."""
    batch = adapter.prepare(prompts)
    towards = torch.randn(6, 48, generator=torch.Generator().manual_seed(2))
    results = []
    for read in (adapter.read, adapter.read_plain):
        hidden = read(batch, soft).hidden
        (gradient,) = torch.autograd.grad((hidden * towards).sum(), soft)
        results.append((hidden, gradient))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-6)


def test_layers_of_the_cached_read_are_those_of_the_whole_rows(adapter, soft):
    batch = adapter.prepare(PROMPTS)
    whole, index = adapter.whole(batch, soft, output_hidden_states=True)
    output = adapter.read_layers(batch, soft, layers=(0, 1, 3, 4), prompt_states=True)
    rows = torch.arange(4)[:, None]
    for k, layer in enumerate((0, 1, 3, 4)):
        own, states = output.hidden[:, k], whole.hidden_states[layer]
        torch.testing.assert_close(own[:, -6:], states[rows, index], atol=1e-6, rtol=1e-6)
        real = batch["attention_mask"] > 0
        prompts = states[:, : real.shape[1]][real]
        torch.testing.assert_close(own[:, :-6][real], prompts, atol=1e-6, rtol=1e-6)


def test_prompt_states_are_those_of_transformers_own_model():
    """Its whole forward merges pictures, numbers places and adds DeepStack by itself."""
    adapter = moved(positions="native", dtype=torch.float64)
    start = adapter.start_embedding.clone()
    adapter.model.get_input_embeddings().weight.data[adapter.prompts.ids.start] = start
    batch = adapter.prepare(PROMPTS)
    whole = adapter.model.model(
        **batch, mm_token_type_ids=(batch["input_ids"] == adapter.prompts.ids.image_pad).int()
    ).last_hidden_state
    soft = torch.zeros(1, 2, 48, dtype=torch.float64)
    own = adapter.read_layers(batch, soft, layers=(4,), prompt_states=True).hidden[:, 0, :-2]
    real = batch["attention_mask"] > 0
    torch.testing.assert_close(own[real], whole[real], atol=1e-6, rtol=1e-6)


def test_deepstack_reaches_the_soft_tokens(adapter, soft, monkeypatch):
    batch = adapter.prepare(PROMPTS[2:])
    whole = adapter.read(batch, soft).hidden
    sight = adapter._sight
    monkeypatch.setattr(adapter, "_sight", lambda batch: (sight(batch)[0], []))
    assert (adapter.read(batch, soft).hidden - whole).abs().amax() > 1e-3


@pytest.mark.parametrize("positions", ["reference", "native"])
def test_the_contract_holds_for_random_weights(positions):
    check_vlm(spec_of(TINY), positions=positions)


def test_native_places_give_pictures_their_rows_and_columns():
    reference, native = (moved(positions=name) for name in ("reference", "native"))
    batch = reference.prepare(PROMPTS)
    real = batch["attention_mask"] > 0
    text, pictures = real.clone(), real.clone()
    text[2:], pictures[:2] = False, False
    assert native.places(batch)[:, text].equal(reference.places(batch)[:, text])
    assert native.places(batch)[:, pictures].amax() < reference.places(batch)[:, pictures].amax()


def test_pixels_equal_those_of_qwens_own_processor():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    prompts = SPECS["qwen3-vl-2b"].build(weights="random", device="meta").prompts
    image = picture(3, (512, 512))  # of the right size already: only normalised and cut
    processor = Qwen2VLImageProcessorPil(
        patch_size=16, image_mean=list(qwen3_vl.HALF), image_std=list(qwen3_vl.HALF)
    )
    expected = processor(image, return_tensors="pt")
    batch = prompts.prepare([Prompt("x", (image,))])
    torch.testing.assert_close(
        batch["pixel_values"], expected["pixel_values"], atol=1e-6, rtol=0, check_dtype=False
    )
    assert batch["image_grid_thw"].tolist() == expected["image_grid_thw"].tolist() == [[1, 32, 32]]
    assert batch["input_ids"].eq(prompts.ids.image_pad).sum() == 256


@pytest.mark.parametrize(
    ("name", "language", "vision", "whole"),
    [
        ("qwen3-vl-2b", 1_720_574_976, 406_957_056, 2_127_532_032),
        ("qwen3-vl-4b", 4_022_468_096, 415_347_712, 4_437_815_808),
        ("qwen3-vl-8b", 7_568_405_504, 576_388_336, 8_767_123_696),
    ],
)
def test_full_sizes_build_on_the_meta_device(name, language, vision, whole):
    """The whole is what the published repositories state."""
    adapter = SPECS[name].build(weights="random", device="meta")
    parts = (adapter.model.model.language_model, adapter.model.model.visual, adapter.model)
    assert [part.num_parameters() for part in parts] == [language, vision, whole]
    batch = adapter.prepare([Prompt("a red mug")])
    soft = torch.zeros(1, 64, adapter.hidden_dim, device="meta")
    assert adapter.read(batch, soft).hidden.shape == (1, 64, SPECS[name].hidden_dim)


def test_a_folder_loads_to_the_same_numbers(tmp_path):
    adapter = moved()
    adapter.model.save_pretrained(tmp_path)
    adapter.prompts.tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = spec_of(TINY).build(weights=tmp_path)
    batch, soft = adapter.prepare(PROMPTS), torch.zeros(1, 3, 48)
    expected = adapter.read(batch, soft).hidden
    torch.testing.assert_close(again.read(batch, soft).hidden, expected, rtol=0, atol=0)
    deeper = replace(TINY, text={**TINY.text, "num_hidden_layers": 5})
    with pytest.raises(WeightsError, match="'qwen3-vl-tiny' has .* do not hold, .*layers.4"):
        spec_of(deeper).build(weights=tmp_path)


def test_missing_weights_say_what_to_fetch_and_how(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="hf download Qwen/Qwen3-VL-8B-Instruct"):
        SPECS["qwen3-vl-8b"].build()


def test_layers_that_do_not_exist_and_unreadable_prompts_are_refused(adapter, soft):
    batch = adapter.prepare(PROMPTS[:1])
    for layers in ((), (5,), (-1,)):
        with pytest.raises(ValueError, match="layers must be some of 0 to 4"):
            adapter.read_layers(batch, soft, layers=layers)
    for text, why in ((" \n", "empty"), ("<|im_end|>", "control token"), ("red " * 200, "more")):
        with pytest.raises(PromptError, match=why):
            adapter.prepare([Prompt(text)])
