"""Checkpoints come back whole, or are refused with the file's name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modalign.checkpoint import (
    load_checkpoint,
    load_trained,
    save_checkpoint,
)
from modalign.errors import OutputError, WeightsError
from modalign.models.dit import TokenStreamDiT
from modalign.recipe import DiTConfig
from modalign.recipes.gap3d import GAP3D
from modalign.tokens import TokenGroup, TokenStreamSpec

STREAM = TokenStreamSpec(
    space="test/layernorm@28",
    groups=(
        TokenGroup(name="cls", shape=(1,), dim=4),
        TokenGroup(name="patches", shape=(2, 3), dim=4),
    ),
)
RECIPE = GAP3D.derive(
    name="small", head=DiTConfig(hidden_size=24, depth=2, num_heads=2, multiple_of=8)
)


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = TokenStreamDiT(STREAM, RECIPE.head, 8)
    named = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    named["soft_tokens"] = torch.empty(1, 5, 8)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in named.items()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "some.safetensors"
    save_checkpoint(path, tensors(), RECIPE, STREAM, {"step": 7})
    return path


def test_a_checkpoint_comes_back_with_all_that_describes_it(saved: Path) -> None:
    checkpoint = load_checkpoint(saved)
    own = tensors()
    assert checkpoint.tensors.keys() == own.keys()
    assert all(checkpoint.tensors[name].equal(own[name]) for name in own)
    assert (checkpoint.recipe, checkpoint.stream) == (RECIPE, STREAM)
    assert checkpoint.extra == {"step": 7}
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_half_precision_and_parameters_are_saved_as_they_are(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2).T.bfloat16())
    scalar = torch.tensor(2, dtype=torch.int64)
    save_checkpoint(tmp_path / "x.safetensors", {"w": weight, "n": scalar}, RECIPE, STREAM)
    back = load_checkpoint(tmp_path / "x.safetensors").tensors
    assert back["w"].equal(weight)
    assert back["w"].dtype == torch.bfloat16
    assert back["n"].equal(scalar)


def test_tensors_arrive_in_the_dtype_asked_for_and_integers_as_they_are(tmp_path: Path) -> None:
    whole = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor([1, 2])}
    save_checkpoint(tmp_path / "x.safetensors", whole, RECIPE, STREAM)
    back = load_checkpoint(tmp_path / "x.safetensors", dtype=torch.bfloat16).tensors
    assert back["w"].equal(whole["w"].bfloat16())
    assert back["n"].equal(whole["n"])


def test_what_is_loaded_does_not_hang_on_the_file(saved: Path) -> None:
    """Tensors are copies: a file that is overwritten or removed later changes nothing."""
    checkpoint = load_checkpoint(saved)
    saved.write_bytes(bytes(saved.stat().st_size))
    own = tensors()
    assert all(checkpoint.tensors[name].equal(own[name]) for name in own)


def test_tensors_of_frozen_parts_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    rows = torch.randn(3, 8)
    save_checkpoint(path, tensors() | {"frozen.token_rows": rows}, RECIPE, STREAM)
    checkpoint = load_trained(path, RECIPE, STREAM, tensors())
    assert checkpoint.tensors.keys() == tensors().keys()
    assert checkpoint.frozen["frozen.token_rows"].equal(rows)


def test_equal_content_gives_equal_files(saved: Path) -> None:
    """Whatever order its writer happens to use: five files, and five entries in each header."""
    for number in range(4):
        again = saved.with_name(f"{number}.safetensors")
        save_checkpoint(again, tensors(), RECIPE, STREAM, {"step": 3})
        save_checkpoint(saved, tensors(), RECIPE, STREAM, {"step": 3})
        assert again.read_bytes() == saved.read_bytes()


def test_any_reader_of_safetensors_reads_it(saved: Path) -> None:
    assert load_file(saved).keys() == tensors().keys()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint at .*nowhere\.safetensors"):
        load_checkpoint(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 300, -1, -1000])
def test_a_truncated_file_is_named(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"some\.safetensors is truncated"):
        load_checkpoint(saved)


def test_a_flipped_bit_is_found_and_its_tensor_named(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-3] ^= 1
    saved.write_bytes(content)
    with pytest.raises(WeightsError, match=r"some\.safetensors is corrupted: .*soft_tokens"):
        load_checkpoint(saved)


def test_a_damaged_header_is_named(saved: Path, tmp_path: Path) -> None:
    own = tensors()
    header = {"format": "modalign-1", "recipe": "{}", "stream": "{}", "extra": "{}"}
    save_file(own, saved, metadata=header)
    with pytest.raises(WeightsError, match=r"header of .*some\.safetensors"):
        load_checkpoint(saved)
    save_file(own, saved)
    with pytest.raises(WeightsError, match=r"some\.safetensors is not a checkpoint of modalign"):
        load_checkpoint(saved)


def test_a_checkpoint_fits_recipes_with_the_same_network(saved: Path) -> None:
    other = RECIPE.derive(name="fast", sampler={"steps": 4})
    assert load_trained(saved, other, STREAM, tensors()).tensors.keys() == tensors().keys()


@pytest.mark.parametrize(
    ("recipe", "stream", "message"),
    [
        (RECIPE.derive(head={"depth": 3}), STREAM, "trained for head"),
        (RECIPE.derive(vlm="another-vlm"), STREAM, "trained for vlm 'qwen2.5-vl-3b'"),
        (
            RECIPE.derive(vlm_options={"positions": "native"}),
            STREAM,
            "trained for vlm_options {}, but recipe 'small' has {'positions': 'native'}",
        ),
        (
            RECIPE.derive(reading={"prompt_states": True}),
            STREAM,
            "trained for reading ReadingConfig.*prompt_states=False.*has .*prompt_states=True",
        ),
        (RECIPE.derive(flow={"prediction": "data"}), STREAM, "trained for prediction 'velocity'"),
        (RECIPE, STREAM.model_copy(update={"space": "test/raw"}), "trained for token stream"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(
    saved: Path, recipe: object, stream: TokenStreamSpec, message: str
) -> None:
    with pytest.raises(WeightsError, match=rf"some\.safetensors was {message}"):
        load_trained(saved, recipe, stream)  # type: ignore[arg-type]


def test_wrong_names_and_shapes_are_listed(saved: Path) -> None:
    expected = tensors()
    expected["head.blocks.9.cross_gate"] = expected.pop("head.blocks.0.cross_gate")
    expected["soft_tokens"] = torch.empty(1, 6, 8, device="meta")
    with pytest.raises(WeightsError) as caught:
        load_trained(saved, RECIPE, STREAM, expected)
    message = str(caught.value)
    assert "some.safetensors" in message
    assert "missing head.blocks.9.cross_gate" in message
    assert "unexpected head.blocks.0.cross_gate" in message
    assert "soft_tokens is (1, 5, 8), expected (1, 6, 8)" in message


def test_a_failed_write_leaves_the_old_file_and_no_other(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("modalign.checkpoint.save_file", full)
    with pytest.raises(OutputError, match=r"some\.safetensors: No space left"):
        save_checkpoint(saved, tensors(), RECIPE, STREAM)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
