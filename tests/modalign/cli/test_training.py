"""`modalign train` and `convert` as a person meets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modalign.conversion import empty_head
from modalign.models.released import to_released
from tests.modalign import stubs
from tests.modalign.cli.outcomes import Command, refused
from tests.modalign.training import runs


def test_convert_goes_to_one_file_and_back(command: Command, use: Any, tmp_path: Path) -> None:
    """Soft tokens and every parameter of the stub network, under the names of the release."""
    use(stubs.registry())
    head = empty_head(stubs.STREAM, stubs.RECIPE.head, 8)
    draw = torch.Generator().manual_seed(0)
    network = {name: torch.randn(t.shape, generator=draw) for name, t in head.state_dict().items()}
    state = to_released(network, head, prefix="model.dit.model.")
    state["model.latent_queries"] = torch.randn(1, 3, 8, generator=draw)
    source, one, back = tmp_path / "source", tmp_path / "one.safetensors", tmp_path / "back"
    source.mkdir()
    save_file({k: t.contiguous() for k, t in state.items()}, source / "model.safetensors")
    code, out, _ = command("convert", source, one, "--recipe", "stub")
    assert code == 0
    assert f"kept: {len(state)} tensors" in out
    assert command("convert", one, back)[0] == 0
    written = load_file(back / "model.safetensors")
    assert written.keys() == state.keys()
    assert all(written[name].equal(state[name]) for name in state)
    ours, again = tmp_path / "ours", tmp_path / "again"
    ours.mkdir()
    one.rename(ours / "model.safetensors")  # a folder, as of a run or `save_pretrained`
    assert command("convert", ours, again)[0] == 0
    assert load_file(again / "model.safetensors").keys() == state.keys()
    refused(command("convert", source, tmp_path / "x.bin", "--recipe", "stub"), "a checkpoint ends")
    refused(command("convert", tmp_path / "no", one, "--recipe", "stub"), "no checkpoint at")
    refused(
        command("convert", source, one, "--recipe", "stub", "--frozen", source), "is one already"
    )


@pytest.fixture
def trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modalign.registry.installed", runs.registry)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("trains")
def test_train_writes_a_model_that_generates(command: Command) -> None:
    options = ("--output", "run", "--steps", 3, "--data", "pairs?bad=0", "--log-every", 1)
    assert command("train", "stub", *options)[:2] == (0, "written to run/model.safetensors\n")
    again = command("train", "stub", *options)
    assert again[:2] == (0, "written to run/model.safetensors\n")  # nothing was left to do
    assert len(runs.rows(Path("run"))) == 3
    made = command("generate", "a mug", "--recipe", "stub", "--checkpoint", "run", "-o", "m.glb")
    assert made[0] == 0


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--data", "pears"], ("'pears'", "Did you mean 'pairs'?")),
        (["--data", "pairs:0"], ("mixing ratio 0",)),
        (["--data", "pairs?nonsense=1"], ("dataset 'pairs' has no option 'nonsense'",)),
        (["--from", "nowhere.safetensors"], ("no checkpoint at nowhere.safetensors",)),
        (["--set", "training.lr=fast"], ("training.lr", "valid number")),
        (["--shard", "3"], ("--shard 3 does not divide the 1 processes",)),
        (["--device", "abacus"], ("device 'abacus' is not available",)),
        (["--evaluate", "pears"], ("'pears'",)),
        (["--evaluate-pictures", "4"], ("say --evaluate NAME",)),
    ],
)
def test_train_refuses_what_cannot_be_trained(
    command: Command, arguments: list[str], parts: tuple[str, ...]
) -> None:
    refused(command("train", "stub", "--output", "run", *arguments), *parts)


@pytest.mark.usefixtures("trains")
def test_train_refuses_the_folder_of_another_run(command: Command) -> None:
    assert command("train", "stub", "--output", "run")[0] == 0
    code, out, err = command("train", "stub", "--output", "run", "--set", "training.lr=0.5")
    assert (code, out) == (2, "")
    assert err.startswith("error: run holds another run: training.lr is 0.01 there, 0.5 here;")


@pytest.mark.usefixtures("trains")
def test_train_refuses_a_recipe_without_data_or_end(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = runs.RECIPE.derive(training={"steps": None, "data": ()})
    monkeypatch.setattr("modalign.registry.installed", lambda: runs.registry(endless))
    refused(command("train", "stub", "--output", "run"), "names no data", "one of: holes, pairs")
    refused(command("train", "stub", "--output", "run", "--data", "pairs"), "--steps N")


def test_a_second_stage_asks_for_the_first(command: Command) -> None:
    refused(
        command("train", "gap3d-finetune", "--data", "toybox", "--steps", 1, "--output", "run"),
        "'gap3d-finetune' continues what 'gap3d' has trained",
        "--from FILE",
    )
