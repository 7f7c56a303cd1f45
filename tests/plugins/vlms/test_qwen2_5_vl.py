"""Qwen2.5-VL adapters: exactness of the cached read, prompts, sizes, weights and their errors."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from modalign_plugins.vlms import qwen2_5_vl, qwen2_5_vl_mini, qwen_vl, qwen_vl_prompts
from PIL import Image

from modalign import Prompt, PromptError, WeightsError
from modalign.testing import check_vlm

SPECS = {spec.name: spec for spec in qwen2_5_vl.modalign_vlms()}
TEXTS = [
    f"a {size} {colour} {thing} on a {wood} table"
    for size in ("small", "large")
    for colour in ("red", "green", "blue")
    for thing in ("mug", "chair", "lamp")
    for wood in ("oak", "pine")
]


def picture(seed=0, size=(112, 112)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def adapter():
    """The mini with every weight moved, so that no zero or one hides a path."""
    adapter = qwen2_5_vl_mini.fresh(TEXTS)
    adapter.model.requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for parameter in adapter.model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.05)
    return adapter


@pytest.fixture(scope="module")
def native(adapter):
    return qwen_vl.QwenVL(adapter.model, adapter.prompts, positions="native")


@pytest.fixture
def soft():
    draw = torch.Generator().manual_seed(1)
    return torch.randn(1, 6, 192, generator=draw).requires_grad_()


PROMPTS = [
    Prompt("a red mug"),
    Prompt("a small green lamp on a pine table, next to a large blue chair"),
    Prompt("make it red", (picture(0),)),
    Prompt("between these", (picture(1, (200, 120)), picture(2))),
]


@pytest.mark.parametrize("positions", ["reference", "native"])
def test_the_cached_read_equals_the_plain_path_in_value_and_gradient(adapter, soft, positions):
    """The second implementation runs whole rows with autograd, soft tokens in their middle."""
    reader = qwen_vl.QwenVL(adapter.model, adapter.prompts, positions=positions)
    batch = reader.prepare(PROMPTS)
    towards = torch.randn(4, 6, 192, generator=torch.Generator().manual_seed(2))
    results = []
    for read in (reader.read, reader.read_plain):
        hidden = read(batch, soft).hidden
        (gradient,) = torch.autograd.grad((hidden * towards).sum(), soft)
        results.append((hidden, gradient))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-4, rtol=1e-4)


def test_what_all_prompts_begin_with_is_counted_up_to_the_first_picture():
    ids = torch.tensor([[5, 6, 9, 9, 7], [5, 6, 9, 9, 7]])
    assert qwen_vl.num_shared(ids, image_pad=9) == 2
    assert qwen_vl.num_shared(ids, image_pad=8) == 5
    assert qwen_vl.num_shared(ids[:1], image_pad=9) == 5
    assert qwen_vl.num_shared(torch.tensor([[1, 2], [3, 2]]), image_pad=9) == 0


@pytest.mark.parametrize("prompts", [PROMPTS[:1] * 3, PROMPTS[2:3], PROMPTS[2:]])
def test_sharing_the_beginning_of_prompts_changes_nothing(adapter, soft, prompts):
    batch = adapter.prepare(prompts)
    plain = adapter.read_plain(batch, soft).hidden
    torch.testing.assert_close(adapter.read(batch, soft).hidden, plain, atol=1e-5, rtol=1e-5)


def test_reading_twice_and_going_backward_twice_works(adapter, soft):
    """The cache must not keep the graph of an earlier step."""
    batch = adapter.prepare(PROMPTS[:2])
    gradients = []
    for _ in range(2):
        adapter.read(batch, soft).hidden.square().sum().backward()
        gradients.append(soft.grad.clone())
        soft.grad = None
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_the_whole_model_with_soft_embeddings_gives_the_same_states(adapter, soft):
    """Transformers' own forward over one un-padded row, ids replaced by embeddings."""
    batch = adapter.prepare(PROMPTS[:1])
    embedded = torch.cat([adapter.embed(batch), soft.detach()], dim=1)
    length = embedded.shape[1]
    places = torch.arange(length).expand(3, 1, length)
    whole = adapter.model.model(inputs_embeds=embedded, position_ids=places).last_hidden_state
    torch.testing.assert_close(adapter.read(batch, soft).hidden, whole[:, -6:], atol=1e-5, rtol=0)


def test_native_places_are_those_of_the_model_and_differ_only_for_pictures(adapter, native):
    batch = adapter.prepare(PROMPTS)
    places = native.places(batch)
    assert torch.equal(
        places[:, :2][:, batch["attention_mask"][:2] > 0],
        adapter.places(batch)[:, :2][:, batch["attention_mask"][:2] > 0],
    )
    assert places[:, 2].max() < adapter.places(batch)[:, 2].max()


def test_the_contract_holds_for_random_weights():
    check_vlm(SPECS["qwen2.5-vl-mini"])


def test_the_prompt_is_the_released_template(adapter):
    """Facts of the released GAP3D, section 2: closed assistant turn, then [IMG]."""
    ids = adapter.prepare([Prompt("a red mug")])["input_ids"][0].tolist()
    assert adapter.prompts.tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nPlease generate image based on the following caption: a red mug"
        "<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n[IMG]"
    )


def test_a_prompt_with_a_picture_is_the_released_edit_template(adapter):
    ids = adapter.prepare([PROMPTS[2]])["input_ids"][0].tolist()
    text = adapter.prompts.tokenizer.decode(ids, skip_special_tokens=False)
    pads = "<|image_pad|>" * 16
    assert (
        "caption: Create a precise replica of: <|vision_start|>" + pads + "<|vision_end|>\n"
        "but: make it red<|im_end|>\n"
    ) in text


def test_full_size_pictures_take_256_tokens():
    prompts = SPECS["qwen2.5-vl-3b"].build(weights="random", device="meta").prompts
    batch = prompts.prepare([Prompt("make it red", (picture(0, (600, 500)),))])
    assert batch["input_ids"].eq(prompts.ids.image_pad).sum() == 256
    assert batch["pixel_values"].shape == (1024, 1176)
    assert batch["image_grid_thw"].tolist() == [[1, 32, 32]]


def test_pixels_equal_those_of_qwens_own_processor(adapter):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image = picture(3)  # already square and of the right size: only normalised and cut in patches
    expected = Qwen2VLImageProcessorPil()(image, return_tensors="pt")
    batch = adapter.prepare([Prompt("x", (image,))])
    torch.testing.assert_close(
        batch["pixel_values"], expected["pixel_values"], atol=1e-6, rtol=0, check_dtype=False
    )
    assert batch["image_grid_thw"].tolist() == expected["image_grid_thw"].tolist()


def test_batches_are_on_the_cpu_and_survive_pickling(adapter):
    batch = adapter.prepare(PROMPTS)
    again = pickle.loads(pickle.dumps(batch))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    workers = pickle.loads(pickle.dumps(adapter.prompts))  # what a worker needs, without a model
    assert torch.equal(workers.prepare(PROMPTS)["input_ids"], batch["input_ids"])


def test_an_overlong_prompt_is_refused_with_the_tail_to_drop(adapter):
    text = "a red mug " * 100 + "and a purple elephant"
    with pytest.raises(PromptError, match=r"\d+ more than the 223 .* shorten it") as caught:
        adapter.prepare([Prompt(text)])
    assert "red mug" in str(caught.value)


def test_cutting_drops_ids_from_the_right_as_released(adapter):
    cutting = qwen_vl_prompts.QwenVLPrompts(
        adapter.prompts.tokenizer, adapter.prompts.ids, adapter.prompts.picture, 30, "cut"
    )
    whole = adapter.prepare([PROMPTS[1]])["input_ids"][0].tolist()
    ids = cutting.prepare([PROMPTS[1]])["input_ids"][0].tolist()
    assert ids == [*whole[:30], adapter.prompts.ids.start]


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (Prompt(" \n"), "empty"),
        (Prompt("a <|image_pad|> mug"), "control token"),
        (Prompt("a mug", ("mug.png",)), "PIL image, got str"),
    ],
)
def test_unreadable_prompts_are_refused(adapter, prompt, why):
    with pytest.raises(PromptError, match=why):
        adapter.prepare([prompt])


def test_no_prompt_answers_and_misshapen_soft_tokens_are_refused(adapter):
    with pytest.raises(PromptError, match="no prompt"):
        adapter.prepare([])
    with pytest.raises(ValueError, match="no language loss"):
        adapter.prepare(PROMPTS[:1], ["red"])
    with pytest.raises(ValueError, match=r"must be \(1, S, 192\), got \(2, 6, 192\)"):
        adapter.read(adapter.prepare(PROMPTS[:1]), torch.zeros(2, 6, 192))
    with pytest.raises(ValueError, match="positions"):
        qwen_vl.QwenVL(adapter.model, adapter.prompts, positions="other")


def test_img_looks_like_the_mean_of_the_words_before_it(adapter):
    table = adapter.model.get_input_embeddings().weight
    expected = table[: adapter.prompts.ids.start].mean(0)
    embedded = adapter.embed(adapter.prepare(PROMPTS[:1]))
    torch.testing.assert_close(embedded[0, -1], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "language", "vision", "whole"),
    [
        ("qwen2.5-vl-3b", 3_085_938_688, 668_684_288, 3_754_622_976),
        ("qwen2.5-vl-7b", 7_070_619_136, 676_550_144, 8_292_166_656),
    ],
)
def test_full_sizes_build_on_the_meta_device(name, language, vision, whole):
    """Parameter counts of the published models."""
    adapter = SPECS[name].build(weights="random", device="meta")
    parts = (adapter.model.model.language_model, adapter.model.model.visual, adapter.model)
    assert [part.num_parameters() for part in parts] == [language, vision, whole]
    batch = adapter.prepare([Prompt("a red mug")])
    assert batch["input_ids"][0, -1] == 151665
    soft = torch.zeros(1, 64, adapter.hidden_dim, device="meta")
    assert adapter.read(batch, soft).hidden.shape == (1, 64, SPECS[name].hidden_dim)


def test_missing_weights_say_what_to_fetch_and_how(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="hf download Qwen/Qwen2.5-VL-3B-Instruct"):
        SPECS["qwen2.5-vl-3b"].build()


def test_rows_that_training_added_replace_the_mean_of_words(tmp_path):
    """The first of them is [IMG]; without them it is the mean of all words before it."""
    build = SPECS["qwen2.5-vl-mini"].build
    rows = torch.randn(3, 192, generator=torch.Generator().manual_seed(0))
    assert build(token_rows=rows).start_embedding.equal(rows[0])
    plain = build()
    words = plain.model.get_input_embeddings().weight[: plain.prompts.ids.start]
    torch.testing.assert_close(plain.start_embedding, words.mean(0))


def test_the_template_is_what_is_read():
    adapter = SPECS["qwen2.5-vl-mini"].build()
    said = SPECS["qwen2.5-vl-mini"].template.replace("{prompt}", "a red mug")
    ids = adapter.prompts.tokenizer.encode(said, add_special_tokens=False).ids
    assert adapter.prepare([Prompt("a red mug")])["input_ids"][0].tolist() == ids


def test_a_saved_mini_loads_to_the_same_numbers(adapter, soft, tmp_path):
    qwen2_5_vl_mini.save(adapter, tmp_path)
    again = SPECS["qwen2.5-vl-mini"].build(weights=tmp_path)
    batch = adapter.prepare(PROMPTS)
    assert torch.equal(again.prepare(PROMPTS)["input_ids"], batch["input_ids"])
    expected = adapter.read(batch, soft).hidden
    torch.testing.assert_close(again.read(batch, soft).hidden, expected, rtol=0, atol=0)


def test_a_folder_without_a_tokenizer_is_named(adapter, tmp_path):
    qwen2_5_vl_mini.save(adapter, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match="tokenizer.json"):
        SPECS["qwen2.5-vl-mini"].build(weights=tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}'
    )
    with pytest.raises(WeightsError, match="model-00002-of-00002.safetensors"):
        SPECS["qwen2.5-vl-3b"].build(weights=tmp_path)


def test_answering_equals_greedy_decoding_without_a_cache(native):
    """The second implementation runs the whole model anew for each word."""
    image, end = picture(4), native.prompts.tokenizer.token_to_id("<|im_end|>")
    said = native.answer("what colour is it?", image, max_new_tokens=6)
    batch = native.prompts.chat(["what colour is it?"], [image])
    words = []
    for _ in range(6):
        logits = native.model(**batch, position_ids=native.places(batch), use_cache=False).logits
        word = logits[0, -1].argmax()
        if word == end:
            break
        words.append(int(word))
        batch["input_ids"] = torch.cat([batch["input_ids"], word.view(1, 1)], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    assert said == native.prompts.tokenizer.decode(words).strip()


def test_chat_batches_train_transformers_own_class(native):
    """Labels cover the answer and its end token; the loss is finite and has gradients."""
    batch = native.prompts.chat(
        ["what is it?", "which colour?"], [picture(5), None], ["a mug", "red"]
    )
    spoken = batch["labels"][0][batch["labels"][0] >= 0]
    assert native.prompts.tokenizer.decode(spoken.tolist(), skip_special_tokens=False) == (
        "a mug<|im_end|>\n"
    )
    native.model.lm_head.requires_grad_(True)
    loss = native.model(**batch, position_ids=native.places(batch)).loss
    loss.backward()
    gradient = native.model.lm_head.weight.grad
    native.model.lm_head.requires_grad_(False)
    native.model.zero_grad()
    assert torch.isfinite(loss)
    assert gradient.abs().sum() > 0


def test_the_trained_tokenizer_keeps_any_text_and_ends_in_special_tokens(adapter):
    tokenizer = adapter.prompts.tokenizer
    text = "Ünïcode, 3 mugs — naïve 猫!"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    assert tokenizer.token_to_id("<image>") == tokenizer.get_vocab_size() - 1
    assert len(tokenizer.encode("a small red mug on a oak table").ids) <= 9
