"""Released-layout folders become one checkpoint and come back, every tensor accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modalign.checkpoint import load_checkpoint, save_checkpoint
from modalign.conversion import WORDS, read_released, write_released
from modalign.errors import OutputError, WeightsError
from modalign.models.dit import TokenStreamDiT
from modalign.models.released import to_released
from modalign.recipe import DiTConfig
from modalign.recipes.gap3d import GAP3D
from modalign.tokens import TokenGroup, TokenStreamSpec

STREAM = TokenStreamSpec(
    space="test/layernorm@28",
    groups=(
        TokenGroup(name="cls", shape=(1,), dim=4),
        TokenGroup(name="registers", shape=(2,), dim=4),
        TokenGroup(name="patches", shape=(2, 3), dim=4),
    ),
)
RECIPE = GAP3D.derive(
    name="small", head=DiTConfig(hidden_size=24, depth=2, num_heads=2, multiple_of=8)
)
ADDED = 10  # words before [IMG]
FROZEN = {
    "model.layers.0.self_attn.q_proj.weight": (3, 3),
    "model.norm.weight": (3,),
    "visual.blocks.0.norm1.weight": (3,),
}


def head() -> TokenStreamDiT:
    with torch.device("meta"):
        return TokenStreamDiT(STREAM, RECIPE.head, 8)


def released(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """A whole released checkpoint: the network, soft tokens, and frozen parts around them."""
    draw = torch.Generator().manual_seed(0)
    network = {
        name: torch.randn(tensor.shape, generator=draw)
        for name, tensor in head().state_dict().items()
    }
    state = to_released(network, head(), prefix="model.dit.model.")
    state["model.latent_queries"] = torch.randn(1, 5, 8, generator=draw)
    state["model.embed_tokens.weight"] = torch.randn(ADDED + 3, 8, generator=draw)
    state |= {name: torch.randn(shape, generator=draw) for name, shape in FROZEN.items()}
    return {name: tensor.to(dtype).contiguous() for name, tensor in state.items()}


def one_file(state: dict[str, Tensor], folder: Path) -> None:
    save_file(state, folder / "model.safetensors")


def shards(state: dict[str, Tensor], folder: Path) -> None:
    names = sorted(state)
    files = {name: f"model-{index % 3}.safetensors" for index, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: state[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def pickled(state: dict[str, Tensor], folder: Path) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def pickled_shards(state: dict[str, Tensor], folder: Path) -> None:
    names = sorted(state)
    files = {name: f"pytorch_model-{index % 2}.bin" for index, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: state[name] for name in names if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))


def in_parallel(state: dict[str, Tensor], folder: Path) -> None:
    one_file({f"module.{name}": tensor for name, tensor in state.items()}, folder)


LAYOUTS = [one_file, shards, pickled, pickled_shards, in_parallel]


def same_bytes(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].view(torch.uint8).equal(right[name].view(torch.uint8))
        for name in left
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_becomes_one_file_and_comes_back_byte_for_byte(layout, tmp_path: Path) -> None:
    """With the frozen folder given, all of it; without, all that was trained."""
    state = released()
    source = tmp_path / "source"
    source.mkdir()
    layout(state, source)
    trained, manifest = read_released(source, head(), first_added=ADDED)
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, trained, RECIPE, STREAM)
    checkpoint = load_checkpoint(path)
    write_released(checkpoint, head(), tmp_path / "bare")
    bare = load_file(tmp_path / "bare" / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if name in manifest.kept}
    assert same_bytes(bare, kept)
    write_released(checkpoint, head(), tmp_path / "whole", frozen=source, first_added=ADDED)
    assert same_bytes(load_file(tmp_path / "whole" / "model.safetensors"), state)


@pytest.mark.parametrize("words", WORDS)
def test_rows_of_added_words_go_along_and_into_another_models_table(
    tmp_path: Path, words: str
) -> None:
    """The frozen folder may be Qwen's own: its table is cut where ours begins."""
    state = released()
    state[words] = state.pop("model.embed_tokens.weight")
    one_file(state, tmp_path)
    trained, _ = read_released(tmp_path, head(), first_added=ADDED)
    rows = state[words][ADDED:]
    assert trained["frozen.token_rows"].equal(rows)
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, trained, RECIPE, STREAM)
    qwen = tmp_path / "qwen"
    qwen.mkdir()
    table = torch.randn(ADDED + 20, 8).bfloat16()
    save_file({words: table}, qwen / "model.safetensors")
    write_released(load_checkpoint(path), head(), tmp_path / "back", frozen=qwen, first_added=ADDED)
    back = load_file(tmp_path / "back" / "model.safetensors")[words]
    assert back.equal(torch.cat([table[:ADDED], rows]))


def test_every_tensor_is_accounted_for(tmp_path: Path) -> None:
    state = released()
    one_file(state, tmp_path)
    _, manifest = read_released(tmp_path, head(), first_added=ADDED)
    network = [name for name in state if name.startswith("model.dit.")]
    assert set(manifest.kept) == {*network, "model.latent_queries"}
    assert manifest.left_out == {"language model": 2, "vision tower": 1, "word table": 1}
    assert len(manifest.kept) + sum(manifest.left_out.values()) == len(state)
    assert str(manifest) == (
        f"kept: {len(network) + 1} tensors\nleft out: 2 of the language model\n"
        "left out: 1 of the vision tower\nleft out: 1 of the word table"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.latent_queries"), r"missing model\.latent_queries"),
        (lambda s: s.pop("model.dit.model.layers.1.gate"), r"missing layers\.1\.gate"),
        (
            lambda s: s.update({"model.dit.model.layers.2.gate": torch.zeros(2)}),
            r"unexpected layers\.2\.gate",
        ),
        (lambda s: s.update({"model.lora.a": torch.zeros(2)}), r"unexpected model\.lora\.a"),
        (
            lambda s: s.update({"model.dit.model.cls_embed.bias": torch.zeros(25)}),
            r"inputs\.0\.projection\.bias is \(25,\)",
        ),
    ],
    ids=["no soft tokens", "missing", "left over", "unknown", "another shape"],
)
def test_what_is_missing_or_unexpected_is_named(change, message: str, tmp_path: Path) -> None:
    state = released()
    change(state)
    one_file(state, tmp_path)
    with pytest.raises(WeightsError, match=message):
        read_released(tmp_path, head(), first_added=ADDED)


def test_an_index_is_held_to_its_word(tmp_path: Path) -> None:
    state = released()
    shards(state, tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    placed = json.loads(index.read_text())
    placed["weight_map"]["model.promised"] = "model-0.safetensors"
    index.write_text(json.dumps(placed))
    with pytest.raises(WeightsError, match=r"not what its index says: missing model\.promised"):
        read_released(tmp_path, head())
    placed["weight_map"] = {"a": "model-7.safetensors"}
    index.write_text(json.dumps(placed))
    with pytest.raises(WeightsError, match=r"lacks model-7\.safetensors, which model\.safetensors"):
        read_released(tmp_path, head())
    index.write_text("{")
    with pytest.raises(WeightsError, match=r"index\.json is damaged"):
        read_released(tmp_path, head())


class Harmful:
    """What a pickle may do to those who read it: here, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_holds_more_than_tensors_is_never_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    torch.save(released() | {"extra": Harmful(trace)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is damaged, or holds more than"):
        read_released(tmp_path, head())
    assert not trace.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file_is_named(name: str, tmp_path: Path) -> None:
    (one_file if name.endswith("safetensors") else pickled)(released(), tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(WeightsError, match=rf"{name} is (truncated|damaged)"):
        read_released(tmp_path, head())


def test_a_header_that_lies_about_shapes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"model.latent_queries": torch.zeros(1, 5, 8)}, path)
    path.write_bytes(path.read_bytes().replace(b"[1,5,8]", b"[1,6,8]"))
    with pytest.raises(WeightsError, match=r"model\.safetensors is truncated, corrupted"):
        read_released(tmp_path, head())


def test_a_folder_without_weights_and_no_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds none of model\.safetensors, pytorch_model\.bin"):
        read_released(tmp_path, head())
    with pytest.raises(WeightsError, match="no checkpoint at"):
        read_released(tmp_path / "nowhere", head())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    one_file(released(), tmp_path)
    trained, _ = read_released(tmp_path, head(), first_added=ADDED)
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, trained, RECIPE, STREAM)
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        write_released(load_checkpoint(path), head(), tmp_path)
    bad = tmp_path / "bad"
    bad.mkdir()
    one_file({"model.norm.weight": torch.zeros(3)}, bad)
    with pytest.raises(WeightsError, match=r"holds no model\.embed_tokens\.weight"):
        write_released(load_checkpoint(path), head(), tmp_path / "new", frozen=bad)
    assert not (tmp_path / "new").exists()


def test_what_was_never_released_is_refused(tmp_path: Path) -> None:
    one_file(released(), tmp_path)
    trained, _ = read_released(tmp_path, head(), first_added=ADDED)
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, trained | {"layer_pooling.logits": torch.zeros(2)}, RECIPE, STREAM)
    with pytest.raises(WeightsError, match=r"has no place for layer_pooling\.logits"):
        write_released(load_checkpoint(path), head(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [TypeError("an int is required"), EOFError()])
def test_whatever_a_damaged_pickle_raises_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Of 300 files with three bytes changed at random some raised TypeError."""

    def fail(*arguments: object, **options: object) -> None:
        raise error

    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(WeightsError, match="is damaged, or holds more than tensors: (an int|EOF)"):
        read_released(tmp_path, head())
