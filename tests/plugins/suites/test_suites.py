"""Both suites from start to report, on tiny parts and true meshes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import modalign_plugins.suites as suites
import numpy as np
import pytest
from modalign_plugins.datasets.toybox import Toybox
from modalign_plugins.suites import alignment, end_to_end
from modalign_plugins.suites.judge import Judge
from modalign_plugins.suites.world import pairs

from modalign import (
    GenerationError,
    Mesh,
    ModalignError,
    Pipeline,
    Progress,
    Registry,
    SuiteSpec,
    build,
)
from modalign.evaluation.rows import Assembled
from tests.modalign import stubs

WORLD = Toybox()


@pytest.fixture
def pipelines(tmp_path: Path) -> dict[str, Pipeline]:
    known = stubs.registry()
    return {
        name: build("stub", weights=stubs.checkpoint(tmp_path / name, scale=scale), registry=known)
        for name, scale in (("stub", 1.0), ("stub-stage1", 2.0))
    }


def suite(name: str) -> SuiteSpec:
    found: SuiteSpec = Registry([("suites", suites)]).get("suites", name)
    return found


def test_alignment_reports_both_domains_and_resumes(
    tmp_path: Path, pipelines: dict[str, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Assembled(pipelines, {"stub-other": "no weights"})
    monkeypatch.setattr(alignment, "assembled", lambda recipe, **_: found)
    told: list[Progress] = []

    def run() -> str:
        return suite("alignment").run(
            stubs.RECIPE, tmp_path, limit=5, training_pairs=20, progress=told.append
        )

    text = run()
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 6 * 5  # domains, rows, samples
    told.clear()
    assert run() == text
    assert (tmp_path / "samples.jsonl").read_text().splitlines() == lines
    assert {progress.step for progress in told} == {5}
    assert "`stub-other` (no weights)" in text
    content = json.loads((tmp_path / "report.json").read_text())
    tables = {table["title"]: table["rows"] for table in content["tables"]}
    assert [title.split(",")[0] for title in tables] == [
        *("Alignment", "Retrieval", "Alignment", "Retrieval"),
        "Second stage less first",
    ]
    for title, rows in list(tables.items())[:4]:
        assert list(rows) == [
            *("unconditional", "nearest caption", "real, other view", "real"),
            *("stub", "stub-stage1"),
        ]
        if title.startswith("Alignment"):
            assert rows["real"]["patches cos"] == pytest.approx(1)
            assert rows["real, other view"]["patches cos"] < 1
            assert rows["stub"] != rows["stub-stage1"] != rows["unconditional"]


def test_changed_weights_are_measured_again(
    tmp_path: Path, pipelines: dict[str, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Assembled({"stub": pipelines["stub"]}, {})
    other = Assembled({"stub": pipelines["stub-stage1"]}, {})
    texts = []
    for found in (first, other, first):
        monkeypatch.setattr(alignment, "assembled", lambda recipe, found=found, **_: found)
        texts.append(suite("alignment").run(stubs.RECIPE, tmp_path, limit=2, training_pairs=5))
    assert texts[0] == texts[2] != texts[1]


def test_end_to_end_counts_what_the_judge_sees(
    tmp_path: Path, pipelines: dict[str, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline that returns the true mesh is always right; nothing comes out of the others."""

    class Nothing:
        accepts = stubs.STREAM

        def __init__(self) -> None:
            self.loaded: list[int] = []  # as of networks that are read when they are needed

        def generate(self, stream: Any, *, seed: int, **options: Any) -> list[Mesh]:
            self.loaded.append(seed)
            raise GenerationError("stage 'stub' found nothing")

    asked: list[str] = []

    def perfect(prompt: str, *, seed: int) -> list[Mesh]:
        asked.append(prompt)
        return [Mesh(*WORLD.object(seed, "compositional").mesh(24))]

    pipeline = pipelines["stub"]
    monkeypatch.setattr(pipeline, "generate", perfect)
    nothing = Nothing()
    monkeypatch.setattr(type(pipeline.parts), "generator", nothing)
    monkeypatch.setattr(
        end_to_end,
        "assembled",
        lambda recipe, **_: Assembled({"stub": pipeline}, {"stub-b": "none"}),
    )
    monkeypatch.setattr(end_to_end, "Judge", lambda world: Judge(world, per_family=5))
    monkeypatch.setattr(
        end_to_end, "true_mesh", lambda data: lambda index: perfect("", seed=index)[0]
    )
    text = suite("end-to-end").run(stubs.RECIPE, tmp_path, limit=4)
    assert asked == ["", "", "", ""] + [WORLD.captions(k, "compositional")[0] for k in range(4)]
    (table,) = json.loads((tmp_path / "report.json").read_text())["tables"]
    rows = table["rows"]
    assert list(rows) == ["true mesh", "real tokens", "stub", "unconditional"]
    for name in ("true mesh", "stub"):
        assert rows[name]["all three"] == rows[name]["family"] == 100
        assert rows[name]["seconds"] > 0
    for name in ("real tokens", "unconditional"):
        assert rows[name]["no mesh"] == 100
        assert rows[name]["family"] == rows[name]["second colour"] == 0
        assert "seconds" not in rows[name]
    assert "`stub-b` (none)" in text
    asked.clear()
    nothing.loaded.clear()
    assert suite("end-to-end").run(stubs.RECIPE, tmp_path, limit=4) == text
    assert not asked
    assert not nothing.loaded


def test_a_mesh_without_area_counts_as_wrong() -> None:
    """As a generator makes it whose surface shrank to a point."""

    def flat(index: int) -> Mesh:
        return Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]]), np.zeros((3, 3)))

    measure = end_to_end.judged(flat, Judge(WORLD, per_family=1), pairs("asset", "val", views=1))
    (found,) = measure(range(1))
    assert found["seen"] == {"error": "a mesh of 1 faces has no area to be judged"}
    assert end_to_end.shares([found])["no mesh"] == 100


def test_what_is_no_mesh_is_refused() -> None:
    measure = end_to_end.judged(
        lambda index: object(), Judge(WORLD, per_family=1), pairs("asset", "val", views=1)
    )
    with pytest.raises(ModalignError, match="no mesh but object; use --suite"):
        list(measure(range(1)))


def test_shares_count_each_property_by_itself() -> None:
    asked = {"family": "mug", "color": "red", "second": "blue"}
    seen: list[dict[str, Any]] = [
        {**asked, "seconds": 1.0},
        {**asked, "second": None, "seconds": 2.0},
        {**asked, "family": "bed", "color": "pink", "seconds": 3.0},
        {"error": "nothing"},
    ]
    found = end_to_end.shares([{"asked": asked, "seen": one} for one in seen])
    assert found == {
        "family": 50,
        "main colour": 50,
        "second colour": 50,
        "family and main": 50,
        "all three": 25,
        "no mesh": 25,
        "seconds": 2,
    }


def test_every_prompt_names_family_both_colours_and_the_second_part() -> None:
    for index in range(end_to_end.PROMPTS):
        toy = WORLD.object(index, end_to_end.SPLIT)
        prompt = WORLD.captions(index, end_to_end.SPLIT)[0]
        said = prompt.replace(":", " ").replace(",", " ").split()
        assert toy.family in prompt
        assert {toy.color, toy.second.color} <= set(said)
        assert any(word in (toy.second.name, toy.second.name[:-1]) for word in said)
