"""How a run starts, and what keeps it from starting."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modalign import DatasetSpec, build, hookimpl
from modalign.errors import ModalignError, OutputError, WeightsError
from modalign.training import world
from modalign.training.run import seeded
from modalign.training.start import changed, number_of_steps, start, untrained, watched
from modalign.training.world import World
from tests.modalign import stubs
from tests.modalign.training import runs


def test_what_a_start_draws_follows_from_the_seed_and_leaves_the_global_state() -> None:
    before = torch.random.get_rng_state()
    with seeded(3):
        first = torch.randn(4)
    with seeded(3):
        again = torch.randn(4)
    assert torch.equal(first, again)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_folder_of_another_run_is_refused_field_by_field(tmp_path: Path) -> None:
    runs.plan(tmp_path).claim()
    runs.plan(tmp_path, {"accumulation": 2, "compile": True}).claim()  # the same run, elsewhere
    expected = "seed is 0 there, 1 here; steps is 9 there, 4 here"
    with pytest.raises(ModalignError, match=f"training.lr is 0.01 there, 0.02 here; {expected}"):
        runs.plan(tmp_path, {"lr": 0.02}, seed=1, steps=4).claim()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write into .*file/run: Not a directory"):
        runs.plan(tmp_path / "file" / "run").claim()


def test_a_run_starts_from_a_file(tmp_path: Path) -> None:
    file = stubs.checkpoint(tmp_path / "stub.safetensors")
    found = {}
    for origin in (None, file):
        asked = runs.plan(tmp_path / "run", start=origin)
        found[origin] = untrained(asked, runs.registry(asked.recipe), World())
    stored = build("stub", weights=file, registry=stubs.registry())
    assert torch.equal(found[file].soft_tokens, stored.soft_tokens)
    assert not torch.equal(found[None].soft_tokens, stored.soft_tokens)
    with pytest.raises(WeightsError, match="no checkpoint at .*none.safetensors to start from"):
        runs.plan(tmp_path / "run", start=tmp_path / "none.safetensors")


def test_the_length_of_a_run_is_said_or_follows_from_the_data() -> None:
    class Sized(runs.Pairs):
        def __len__(self) -> int:
            return 20

    recipe = runs.RECIPE.derive(training={"steps": None, "epochs": 3})
    assert number_of_steps(recipe, [(Sized(), 1.0)]) == 3 * 20 // 8
    with pytest.raises(ModalignError, match="no end; say how long: --steps N"):
        number_of_steps(recipe, [(runs.Pairs(), 1.0)])


def test_fields_are_set_by_dotted_name() -> None:
    recipe = changed(runs.RECIPE, ["training.lr=0.5", "training.data=[]", "summary=mine"])
    assert (recipe.training.lr, recipe.training.data, recipe.summary) == (0.5, (), "mine")
    for change, expected in [
        ("training.lrr=1", "training.lrr: Extra inputs"),
        ("training.lr=-1", "training.lr: Input should be greater than 0"),
        ("name.x=1", "write field=value"),
        ("training.lr", "write field=value"),
    ]:
        with pytest.raises(ModalignError, match=expected):
            changed(runs.RECIPE, [change])


def test_two_runs_never_write_one_folder(tmp_path: Path) -> None:
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); "
        "fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ModalignError, match="is being trained by another process"):
            runs.run(tmp_path)
        other.communicate(b"")
    assert runs.run(tmp_path) == 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "shard", "expected"),
    [
        ({"data": ("pears",)}, None, "error: unknown dataset 'pears'. Did you mean 'pairs'?"),
        ({}, 3, "error: --shard 3 does not divide the 2 processes of this run"),
        ({"batch_size": 9}, None, "error: a batch of 9 cannot be cut into equal parts for 2"),
        ({"batch_size": 16}, None, "holds another run: training.batch_size is 8 there, 16 here"),
    ],
)
def test_of_two_processes_that_cannot_start_one_says_why(
    tmp_path: Path, changes: dict[str, Any], shard: int | None, expected: str
) -> None:
    """Before they are joined, and once they are: on all alike, and on rank 0 alone."""
    folder = tmp_path / "run"
    if "holds" in expected:
        runs.plan(folder).claim()
    codes = runs.launch(folder, changes, size=2, shard=shard)
    assert codes[0] == 2
    assert expected in runs.said(folder)
    assert [runs.said(folder, rank).count("error") for rank in (0, 1)] == [1, 0]


@pytest.mark.parametrize(("rank", "raised"), [(0, SystemExit), (1, ModalignError), (2, SystemExit)])
def test_what_fails_on_one_process_ends_all_and_the_first_of_them_tells(
    monkeypatch: pytest.MonkeyPatch, rank: int, raised: type[BaseException]
) -> None:
    """Ranks 1 and 2 of three fail; what processes hear of each other is given."""
    monkeypatch.setattr(World, "gathered", lambda self, own: [1, 2])
    monkeypatch.setattr(world, "PATIENCE", 0)

    def work() -> None:
        with World(rank, 3).together():
            if rank:
                raise ModalignError("cannot")

    with pytest.raises(raised, match="cannot" if rank == 1 else "2"):
        work()


def test_an_unknown_tracker_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    asked = runs.plan(tmp_path / "run")
    with pytest.raises(ModalignError, match="no tracker 'comet'"):
        start(asked, runs.registry(), track=("comet",))
    assert not (tmp_path / "run").exists()


def test_a_set_shorter_than_what_is_watched_is_watched_whole() -> None:
    class Few(runs.Pairs):
        def __init__(self, size: int) -> None:
            super().__init__(bad=0)
            self.size = size

        def __len__(self) -> int:
            return self.size

        def example(self, index: int, epoch: int = 0) -> Any:
            return super().example(range(self.size)[index], epoch)

    class Data:
        @hookimpl
        def modalign_datasets(self) -> list[DatasetSpec]:
            return [DatasetSpec(name="few", build=Few)]

    known = stubs.registry(runs.RECIPE, more=[runs.Data(), Data()])
    pipeline = build("stub", weights="untrained", registry=known)
    asked = replace(runs.plan(Path("run")), evaluate="few?size=5")
    watch = watched(asked, known, pipeline)
    assert watch is not None
    assert len(watch.prompts) == 5
    assert "cls_R@1" in watch(pipeline.trainable())
    with pytest.raises(ModalignError, match="'few.size=0' has no samples to watch"):
        watched(replace(asked, evaluate="few?size=0"), known, pipeline)


def test_the_encoder_is_built_once_however_many_workers_prepare(tmp_path: Path) -> None:
    """A worker is forked: one that builds for itself fails with CUDA, and takes memory without."""
    log = tmp_path / "builders"

    def built(**options: Any) -> stubs.Encoder:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return stubs.Encoder()

    asked = runs.plan(tmp_path / "run", steps=3, workers=2)
    start(asked, runs.registry(encoder={"build": built}))
    assert log.read_text().split() == [str(os.getpid())]
