"""The README's first command, with the weights that ship."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from modalign_plugins.datasets.toybox import Toybox
from modalign_plugins.suites.judge import Judge
from PIL import Image

import modalign

PROMPT = "a red mug with a blue handle"
PROMPTS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the command has written `mug.glb` and `mug.png`."""
    folder = tmp_path_factory.mktemp("main")
    call = [sys.executable, "-m", "modalign", "generate", PROMPT, "--output", "mug.glb"]
    done = subprocess.run(
        call, cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "mug.glb  mug.png\n"
    return folder


@pytest.fixture(scope="module")
def mesh(folder: Path) -> trimesh.Trimesh:
    return trimesh.load(folder / "mug.glb", force="mesh")


def test_the_command_writes_the_two_files_and_nothing_else(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["mug.glb", "mug.png"]


def test_the_mesh_is_one_that_others_can_read(mesh: trimesh.Trimesh) -> None:
    assert len(mesh.faces) > 100
    assert np.isfinite(mesh.vertices).all()
    assert np.abs(mesh.vertices).max() <= 0.5 + 1e-3
    assert np.ptp(mesh.vertices, axis=0).max() > 0.5


def test_the_preview_shows_something(folder: Path) -> None:
    with Image.open(folder / "mug.png") as opened:
        pixels = np.asarray(opened.convert("RGB"), dtype=float)
    assert min(pixels.shape[:2]) >= 64
    assert pixels.std() > 10


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    folder: Path, tmp_path: Path
) -> None:
    pipeline = modalign.build("gap3d-mini")
    for seed in (0, 1):
        (asset,) = pipeline.generate(PROMPT, seed=seed)
        asset.save(tmp_path / f"{seed}.glb")
    first = (folder / "mug.glb").read_bytes()
    assert (tmp_path / "0.glb").read_bytes() == first
    assert (tmp_path / "1.glb").read_bytes() != first


def test_prompts_of_unseen_pairs_decide_the_shape_and_the_colour() -> None:
    """Chance is 4 % for a family and 8 % for a colour; `modalign bench` has the real shares."""
    world, pipeline = Toybox(0), modalign.build("gap3d-mini")
    jury = Judge(world)
    families = colors = seconds = 0
    for index in range(PROMPTS):
        (mesh,) = pipeline.generate(world.captions(index, "compositional")[0], seed=index)
        assert isinstance(mesh, modalign.Mesh)
        found, asked = jury(mesh), world.object(index, "compositional")
        families += found.family == asked.family
        colors += found.color == asked.color
        seconds += asked.second is not None and found.second == asked.second.color
    assert families >= 0.8 * PROMPTS
    assert colors >= 0.8 * PROMPTS
    assert seconds >= 0.7 * PROMPTS


def test_the_readme_mug_is_a_red_mug_and_with_most_seeds_its_handle_is_blue() -> None:
    """One seed would say little: of seeds 0 to 16, 11 have a blue handle (docs/LOG.md)."""
    pipeline, judge = modalign.build("gap3d-mini"), Judge(Toybox(0))
    found = [judge(mesh) for seed in range(8) for mesh in pipeline.generate(PROMPT, seed=seed)]
    assert [(mug.family, mug.color) for mug in found] == [("mug", "red")] * 8
    assert sum(mug.second == "blue" for mug in found) > 4
