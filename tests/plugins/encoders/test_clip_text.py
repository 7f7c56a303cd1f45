"""CLIP's text tower: against transformers, and the texts that it reads."""

from __future__ import annotations

import pytest
import torch
from modalign_plugins.encoders import clip_text
from safetensors.torch import save_file

from modalign import WeightsError, installed
from modalign.contract import pair_rows
from modalign.testing import check_encoder

TINY = {
    **clip_text.SIZES,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
SPEC = installed().get("encoders", "clip-text-vitl14")


@pytest.fixture(scope="module")
def published():
    """A tower of transformers' own, and its tensors under the names of the published file."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPTextModel(CLIPTextConfig(**TINY)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    tensors = {f"text_model.{k}": x.detach().clone() for k, x in model.state_dict().items()}
    return model, tensors


def test_tokens_are_the_last_hidden_state_of_transformers(published):
    model, tensors = published
    others = {
        "vision_model.post_layernorm.weight": torch.ones(3),
        "text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    encoder = clip_text.ClipTextEncoder(TINY, tensors={**tensors, **others})
    batch = encoder.prepare(["a red mug", ""])
    with torch.no_grad():
        expected = model(input_ids=batch).last_hidden_state
    assert torch.equal(encoder.encode(batch)["tokens"], expected)


def test_word_numbers_are_those_of_open_clip_up_to_the_padding():
    """Its own tokenizer is a second implementation; it pads with zeros."""
    import open_clip

    texts = ["a photo of a cat", "A Small, wooden chair's leg!", "", "x " * 200]
    ours = clip_text.ClipTextEncoder.prepare(ENCODER, texts)
    theirs = open_clip.tokenize(texts)
    end = 49407
    assert torch.equal(ours, torch.where(theirs == 0, end, theirs))
    # Published with the model: "a photo of a cat" between the two marks.
    assert ours[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, end, end]


class ENCODER:
    stream = SPEC.stream


def test_the_contract_of_encoders_is_kept(published):
    _, tensors = published
    check_encoder(
        clip_text.EncoderSpec(
            name="tiny",
            build=lambda weights: clip_text.ClipTextEncoder(TINY, tensors=tensors),
            stream=clip_text.stream_of(TINY),
            modality="text",
        )
    )


def test_a_file_of_another_model_is_refused(published, tmp_path):
    _, tensors = published
    tensors = {name: x for name, x in tensors.items() if "final_layer_norm" not in name}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="clip-text-vitl14"):
        SPEC.build(weights=tmp_path)


def test_the_full_size_has_the_numbers_of_the_published_tower():
    """123,060,480 parameters: transformers' own count for openai/clip-vit-large-patch14's text."""
    encoder = SPEC.build(weights="random", device="meta")
    assert sum(p.numel() for p in encoder.model.parameters()) == 123_060_480
    assert SPEC.stream.num_tokens == 77


@pytest.mark.parametrize("size", ["base", "large", "xlarge"])
def test_it_drives_the_text_pipelines_of_trellis(size):
    rows = pair_rows(SPEC, installed().get("generators", f"trellis-text-{size}"), ())
    assert rows[0] == ("pair", "works", "the same space")
