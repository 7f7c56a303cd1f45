"""Adapters of any model of transformers, on tiny random ones of many architectures.

The second implementation of a cached read is `read_plain`: whole rows with autograd. The third is
transformers itself: soft tokens that are the embeddings of words must read as the words do.
"""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import torch
from modalign_plugins.vlms.any_decoder import decoder_of, following
from modalign_plugins.vlms.chat_prompts import joined
from PIL import Image

from modalign import BuildError, Example, Prompt, PromptError, WeightsError, build, installed
from modalign.testing import check_vlm
from tests.modalign import stubs
from tests.plugins.vlms import tiny_models

# PaliGemma's processor turns a tensor into an array in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SPECS = {name: installed().get("vlms", f"transformers-{name}") for name in ("vlm", "lm")}
EVERY = [*tiny_models.VLMS, *(f"{name}-lm" for name in tiny_models.LMS)]
LINEAR = ("qwen3_5", "qwen3_5-lm")
# Gemma 2's softmax turns the mask of a float64 padding row into -inf, and that into NaN.
SINGLE = {"gemma2-lm"}


def picture(seed, size=(40, 30)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


TEXTS = [Prompt("a red mug"), Prompt("a small green lamp on a pine table, next to a blue chair")]
PICTURES = [Prompt("red", (picture(0),)), Prompt("both", (picture(1), picture(2, (30, 60))))]


def prompts_of(name):
    return TEXTS if name.endswith("-lm") else [*TEXTS, *PICTURES]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder per architecture, made when it is first asked for."""
    made = {}

    def folder(name):
        if name not in made:
            torch.manual_seed(0)
            own = name.removesuffix("-lm")
            parts = (
                tiny_models.language_model(own) if name.endswith("-lm") else tiny_models.VLMS[own]()
            )
            made[name] = tiny_models.saved(parts, tmp_path_factory.mktemp(name))
        return made[name]

    return folder


@pytest.fixture(scope="module")
def adapters(folders):
    def adapter(name, dtype=None):
        spec = SPECS["lm" if name.endswith("-lm") else "vlm"]
        default = torch.float32 if name in SINGLE else torch.float64
        return spec.build(model=str(folders(name)), dtype=dtype or default)

    return adapter


def soft_tokens(adapter, count=6):
    draw = torch.Generator().manual_seed(1)
    soft = torch.randn(1, count, adapter.hidden_dim, generator=draw)
    return soft.to(adapter.model.dtype).requires_grad_()


@pytest.mark.parametrize("name", [name for name in EVERY if name not in LINEAR])
def test_the_cached_read_equals_the_plain_path_in_value_and_gradient(adapters, name):
    adapter, prompts = adapters(name), prompts_of(name)
    assert adapter.cached
    soft = soft_tokens(adapter)
    for asked in (prompts, prompts[:2], prompts[-1:]):
        batch = adapter.prepare(asked)
        results = []
        for read in (adapter.read, adapter.read_plain):
            hidden = read(batch, soft).hidden
            towards = torch.linspace(-1, 1, hidden.shape[-1], dtype=hidden.dtype)
            (gradient,) = torch.autograd.grad((hidden * towards).sum(), soft)
            results.append((hidden, gradient))
        torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_soft_tokens_that_are_words_read_as_the_words_do(adapters, name):
    """Transformers' own forward of one whole row of ids, without padding, positions or a cache."""
    adapter = adapters(name)
    words = torch.tensor([[5, 9, 77]])
    for prompt in prompts_of(name):
        batch = adapter.prepare([prompt])
        whole = dict(batch)
        for key, fill in (
            ("input_ids", words),
            ("attention_mask", torch.ones_like(words)),
            ("token_type_ids", torch.full_like(words, int(name == "paligemma"))),
            ("mm_token_type_ids", torch.zeros_like(words)),
        ):
            if key in whole:
                whole[key] = torch.cat([whole[key], fill], dim=1)
        with torch.no_grad():
            expected = adapter.model.base_model(**whole, use_cache=False).last_hidden_state
            soft = adapter.model.get_input_embeddings()(words)
            states = adapter.read_layers(
                batch, soft, layers=(adapter.num_layers,), prompt_states=True
            ).hidden[:, 0]
        torch.testing.assert_close(states, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_the_contract_holds(folders, name):
    """Causality, padding, gradient, layers and prompt states: see `modalign.testing`."""
    check_vlm(SPECS["lm" if name.endswith("-lm") else "vlm"], model=str(folders(name)))


def test_reading_twice_and_going_backward_twice_works(adapters):
    """The cache must not keep the graph of an earlier step."""
    adapter = adapters("gemma3")
    batch, soft, gradients = adapter.prepare([*TEXTS, *PICTURES]), soft_tokens(adapter), []
    for _ in range(2):
        adapter.read(batch, soft).hidden.square().sum().backward()
        gradients.append(soft.grad.clone())
        soft.grad = None
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_the_window_of_sliding_layers_is_shorter_than_the_prompts(adapters):
    """Else the tests above would not show that it is kept."""
    for name in ("gemma3", "paligemma", "gemma2-lm", "gemma3-lm"):
        adapter = adapters(name)
        window = adapter.model.config.get_text_config().sliding_window
        assert window < adapter.prepare(TEXTS[:1])["input_ids"].shape[1]


@pytest.mark.parametrize("name", LINEAR)
def test_linear_attention_is_differentiated_as_a_whole(adapters, name):
    adapter = adapters(name)
    assert not adapter.cached
    batch, soft = adapter.prepare(prompts_of(name)), soft_tokens(adapter)
    hidden = adapter.read(batch, soft).hidden
    (gradient,) = torch.autograd.grad(hidden[:, -1].square().sum(), soft)
    assert gradient.abs().sum(-1).gt(0).all()
    alone = adapter.read(adapter.prepare(TEXTS[:1]), soft).hidden
    torch.testing.assert_close(alone, hidden[:1], atol=1e-6, rtol=1e-6)


def test_middle_layers_are_those_of_the_plain_path(adapters):
    """Also in the gradient, which reaches soft tokens through the layers below only."""
    adapter = adapters("llava_onevision")
    batch, soft = adapter.prepare([*TEXTS, *PICTURES]), soft_tokens(adapter)
    results = []
    for cached in (True, False):
        adapter.cached = cached
        hidden = adapter.read_layers(batch, soft, layers=(0, 2), prompt_states=True).hidden
        (gradient,) = torch.autograd.grad(hidden[:, 1].square().sum(), soft)
        results.append((hidden, gradient))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(results[0][0][:, 0, -6:], soft.expand(4, -1, -1))


def test_prompts_come_in_the_model_s_chat_form_with_pictures_first(adapters):
    prompts = adapters("idefics3").prompts
    text = prompts.tokenizer.decode(prompts.prepare(TEXTS[:1])["input_ids"][0].tolist())
    request = "Please generate image based on the following caption: a red mug"
    assert text == f"<s>user:{request}</s>assistant:"
    text = prompts.tokenizer.decode(prompts.prepare(PICTURES[:1])["input_ids"][0].tolist())
    assert text.startswith("<s>user:<fake_token_around_image>")
    assert text.endswith(
        "<fake_token_around_image>" + request.replace("a red mug", "red") + "</s>assistant:"
    )


def test_a_tokenizer_without_a_template_gets_the_bare_request(adapters, folders, tmp_path):
    shutil.copytree(folders("llama-lm"), tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    adapter = SPECS["lm"].build(model=str(tmp_path / "bare"))
    text = adapter.prompts.tokenizer.decode(adapter.prepare(TEXTS[:1])["input_ids"][0].tolist())
    assert text == "Please generate image based on the following caption: a red mug"


def test_rows_are_padded_on_the_left_and_batches_survive_pickling(adapters):
    adapter = adapters("gemma3")
    batch = adapter.prepare([*TEXTS, *PICTURES])
    assert batch["attention_mask"][:, -1].all()
    assert not batch["attention_mask"][0, 0]
    again = pickle.loads(pickle.dumps(adapter.prompts)).prepare([*TEXTS, *PICTURES])
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_pictures_of_different_counts_are_filled_with_zeros():
    one, two = torch.ones(1, 2, 3), torch.ones(2, 4, 3)
    whole = joined([one, two])
    assert whole.shape == (3, 4, 3)
    assert whole[0].sum() == 6
    assert whole[0, 2:].eq(0).all()
    assert whole[1:].eq(1).all()


def test_soft_tokens_are_numbered_after_the_last_real_one():
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    flat = torch.tensor([[0, 0, 1], [0, 1, 2]])
    assert following(flat, mask, 2)["position_ids"].tolist() == [[2, 3], [3, 4]]
    one_based = torch.tensor([[1, 2, 3]])  # the same for every row
    assert following(one_based, mask, 1)["position_ids"].tolist() == [[4], [4]]
    axes = torch.stack([flat, flat + 5, flat])
    assert following(axes, mask, 1)["position_ids"].tolist() == [[[7], [8]]] * 3
    with_text = torch.cat([flat[None] + 90, axes])
    assert following(with_text, mask, 1)["position_ids"].tolist() == [[[7], [8]]] * 3
    assert following(None, mask, 1) == {}


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (Prompt(" \n"), "empty"),
        (Prompt("a <image> mug"), "control token"),
        (Prompt("a red mug " * 50), r"\d+ more than the 447 .* shorten it by its end"),
        (Prompt("a mug", ("mug.png",)), "PIL image, got str"),
        (Prompt("mug", (picture(0),)), "reads text only"),
    ],
)
def test_unreadable_prompts_are_refused(adapters, prompt, why):
    name = "llama-lm" if "text only" in why else "idefics3"
    with pytest.raises(PromptError, match=why):
        adapters(name).prepare([prompt])


def test_no_prompt_answers_long_rows_and_misshapen_soft_tokens_are_refused(adapters):
    adapter = adapters("llama-lm")
    with pytest.raises(PromptError, match="no prompt"):
        adapter.prepare([])
    with pytest.raises(ValueError, match="no language loss"):
        adapter.prepare(TEXTS[:1], ["red"])
    batch = adapter.prepare(TEXTS[:1])
    with pytest.raises(ValueError, match=r"must be \(1, S, 48\), got \(2, 6, 48\)"):
        adapter.read(batch, torch.zeros(2, 6, 48))
    with pytest.raises(PromptError, match="1000 soft tokens follow, but the model has 1024"):
        adapter.read(batch, torch.zeros(1, 1000, 48))
    with pytest.raises(ValueError, match="layers must be some of 0 to 3"):
        adapter.read_layers(batch, torch.zeros(1, 6, 48), layers=(4,))


def test_random_weights_need_only_what_describes_the_model(folders, tmp_path):
    for name, kind in (("idefics3", "vlm"), ("llama-lm", "lm")):
        folder = tmp_path / name
        shutil.copytree(folders(name), folder)
        (folder / "model.safetensors").unlink()
        adapter = SPECS[kind].build(model=str(folder), weights="random")
        soft = torch.zeros(1, 4, 48)
        assert adapter.read(adapter.prepare(TEXTS), soft).hidden.shape == (2, 4, 48)
        empty = SPECS[kind].build(model=str(folder), weights="random", device="meta")
        assert empty.device.type == "meta"
        assert empty.model.num_parameters() == adapter.model.num_parameters()
        with pytest.raises(WeightsError, match=r"needs model\.safetensors, which .* lacks"):
            SPECS[kind].build(model=str(folder))


def test_weights_as_pickles_are_never_read(folders, tmp_path):
    shutil.copytree(folders("llama-lm"), tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").rename(tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"needs model\.safetensors"):
        SPECS["lm"].build(model=str(tmp_path / "old"))


def test_code_that_comes_with_a_model_is_never_run(folders, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(folders("llama-lm"), folder)
    (folder / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}'
    )
    (folder / "own.py").write_text("raise SystemExit('code of a model was run')")
    with pytest.raises(WeightsError, match="no usable (config|tokenizer)"):
        SPECS["lm"].build(model=str(folder))


@pytest.mark.parametrize(
    ("kind", "model", "error", "why"),
    [
        ("vlm", None, BuildError, "serves any model; name one in the recipe, vlm_options"),
        ("lm", "./nowhere/at/all", WeightsError, "no folder and no repository"),
        ("lm", "someone/something", WeightsError, "hf download someone/something"),
        ("vlm", "llama-lm", WeightsError, "no processor of pictures .* take 'transformers-lm'"),
        ("lm", "idefics3", BuildError, "no model of type 'idefics3' of this kind"),
    ],
)
def test_what_cannot_be_served_is_named(folders, monkeypatch, tmp_path, kind, model, error, why):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    given = str(folders(model)) if model in EVERY else model
    with pytest.raises(error, match=why):
        SPECS[kind].build(model=given)


def test_a_library_that_a_processor_needs_is_named(folders, monkeypatch):
    import transformers

    def missing(*arguments, **options):
        raise ImportError("Package `num2words` is required to run SmolVLM processor.")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", missing)
    with pytest.raises(BuildError, match="num2words"):
        SPECS["vlm"].build(model=str(folders("idefics3")))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Florence2", "has an encoder and a decoder"),
        ("Mllama", "sees pictures by cross-attention"),
        ("Mamba", "cannot enter the decoder of MambaForCausalLM .* takes no past_key_values"),
    ],
)
def test_models_without_a_causal_decoder_of_embeddings_are_refused(name, why):
    import transformers

    kind = "CausalLM" if name == "Mamba" else "ConditionalGeneration"
    config = getattr(transformers, f"{name}Config")()
    with torch.device("meta"):
        model = getattr(transformers, f"{name}For{kind}")(config)
    with pytest.raises(BuildError, match=why):
        decoder_of(model)


def test_the_decoder_is_found_beneath_a_head_of_words():
    """BLIP-2 holds a whole language model, whose output would be words."""
    import transformers

    with torch.device("meta"):
        model = transformers.Blip2ForConditionalGeneration(transformers.Blip2Config())
    assert type(decoder_of(model)).__name__ == "OPTDecoder"


@pytest.mark.parametrize(
    "reading",
    [
        {},
        {"layers": (1, 3)},
        {"layers": (0, 1, 2), "pooling": "learned", "prompt_states": True},
    ],
)
def test_a_recipe_of_any_model_trains_and_aligns(folders, reading):
    """The whole pipeline around a model that is known by its folder alone."""
    recipe = stubs.RECIPE.derive(
        name="any",
        vlm="transformers-vlm",
        vlm_options={"model": str(folders("idefics3"))},
        reading=reading,
    )
    known = stubs.registry(recipe, vlm=vars(SPECS["vlm"]))
    pipeline = build(recipe, weights="untrained", registry=known)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(0)
        for parameter in pipeline.head.parameters():  # gates start closed
            parameter.normal_(std=0.2, generator=draw)
    examples = [Example(prompt, picture(9)) for prompt in (*TEXTS, *PICTURES)]
    losses = pipeline(pipeline.collate(examples), torch.Generator().manual_seed(0))
    losses["loss"].backward()
    for name, parameter in pipeline.trainable().items():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert pipeline.soft_tokens.grad.abs().sum() > 0
    together = pipeline.align([*TEXTS, *PICTURES], seed=3)["patches"]
    alone = pipeline.align(PICTURES[-1:], seed=6)["patches"]
    torch.testing.assert_close(together[3:], alone, atol=1e-4, rtol=1e-4)
