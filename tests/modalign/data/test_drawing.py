"""A folder of meshes becomes pictures that training reads."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from modalign import Mesh, ModalignError, OutputError, installed
from modalign.cli import app
from modalign.data import parse_source, survey
from modalign.data.drawing import render_folder
from modalign.data.views import ViewPlan

PLAN = ViewPlan(size=32)
TOYS = 4


def toy(number):
    """An object of the toy world, which exports its meshes itself."""
    world = installed().get("datasets", "toybox").build(seed=3).world
    vertices, faces, colors = world.object(number).mesh(16)
    return Mesh(vertices, faces, colors)


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Toys in three formats with captions, one below another folder, and files that are broken."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "more").mkdir()
    names = ["a.glb", "b.obj", "c.ply", "more/d.glb"]
    for number, name in enumerate(names):
        toy(number).save(folder / name)
        captions = f"toy {number}\n\n the one called {name} \n"
        (folder / name).with_suffix(".txt").write_text(captions)
    (folder / "broken.glb").write_bytes(b"glTF")
    (folder / "empty.obj").write_bytes(b"")
    (folder / ".hidden.glb").write_bytes(b"")
    return folder


@pytest.fixture
def folder(toys, tmp_path):
    return shutil.copytree(toys, tmp_path / "toys")


def contents(output):
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }


def test_what_is_drawn_is_read_as_renders(folder, tmp_path):
    output = tmp_path / "out"
    found = render_folder(folder, output, PLAN)
    assert (found.drawn, found.kept, found.captioned) == (TOYS, 0, TOYS)
    assert list(found.skipped) == ["broken.glb", "empty.obj"]
    assert json.loads((output / "render.json").read_bytes())["skipped"] == found.skipped
    assert not [path for path in output.iterdir() if path.name.startswith(".")]
    seen = survey(parse_source(f"renders?path={output}", installed())[0])
    assert (seen.good, seen.bad) == (TOYS, [])
    assert seen.sizes == {(32, 32): TOYS}
    captions = json.loads((output / "renders" / "more__d" / "captions.json").read_bytes())
    assert captions == ["toy 3", "the one called more/d.glb"]
    assert all(np.asarray(image).any() for image, _ in seen.shown)


def test_every_view_is_a_sample(folder, tmp_path):
    render_folder(folder, tmp_path / "out", ViewPlan(views="4", size=16))
    seen = survey(parse_source(f"renders?path={tmp_path / 'out'}&views=4", installed())[0])
    assert (seen.good, seen.bad) == (4 * TOYS, [])


def test_processes_and_one_process_write_the_same_bytes(folder, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    render_folder(folder, here, PLAN)
    render_folder(folder, there, PLAN, workers=2)
    assert contents(here) == contents(there)


def test_a_run_goes_on_with_what_is_missing(folder, tmp_path, monkeypatch):
    output = tmp_path / "out"
    render_folder(folder, output, PLAN)
    whole = contents(output)
    (output / "renders" / "a" / "000.png").unlink()
    (output / "renders" / "b" / "transforms.json").write_bytes(b"{")
    shutil.rmtree(output / "renders" / "c")
    drawn = []
    monkeypatch.setattr("modalign.data.drawing.object_files", _spy(drawn))
    found = render_folder(folder, output, PLAN)
    assert (found.drawn, found.kept, found.captioned) == (3, 1, TOYS)
    assert drawn == ["a.glb", "b.obj", "broken.glb", "c.ply", "empty.obj"]
    assert contents(output) == whole


def _spy(drawn):
    from modalign.data.views import object_files

    def spied(path, plan):
        drawn.append(path.name)
        return object_files(path, plan)

    return spied


def test_a_mesh_that_changed_is_drawn_again_and_new_captions_are_copied(folder, tmp_path):
    output = tmp_path / "out"
    render_folder(folder, output, PLAN)
    before = contents(output)
    shutil.copy(folder / "b.obj", folder / "a.obj")
    shutil.copy(folder / "more" / "d.glb", folder / "a.glb")
    (folder / "b.txt").write_text("a new one")
    (folder / "c.txt").write_bytes(b"\xff\xfe")
    found = render_folder(folder, output, PLAN)
    assert (found.drawn, found.kept) == (1, TOYS - 1)
    assert found.skipped["a.obj"] == "a.glb has the same name 'a'"
    assert found.unreadable == ["c.txt"]
    assert "captions that are no UTF-8: c.txt" in found.text()
    after = contents(output)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        "render.json",
        "renders/a/000.png",
        "renders/a/transforms.json",
        "renders/b/captions.json",
    }
    assert after["renders/a/000.png"] == after["renders/more__d/000.png"]


def test_a_folder_of_something_else_or_of_another_plan_is_left_alone(folder, tmp_path):
    output = tmp_path / "out"
    render_folder(folder, output, PLAN)
    before = contents(output)
    with pytest.raises(OutputError, match="was drawn with size 32"):
        render_folder(folder, output, ViewPlan(size=64))
    assert contents(output) == before
    with pytest.raises(OutputError, match="holds no render.json"):
        render_folder(folder, folder, PLAN)
    (output / "render.json").write_bytes(b"{}")
    with pytest.raises(OutputError, match="damaged"):
        render_folder(folder, output, PLAN)


def test_a_folder_without_a_mesh_that_can_be_drawn_is_refused(tmp_path):
    with pytest.raises(ModalignError, match="no folder at"):
        render_folder(tmp_path / "nowhere", tmp_path / "out", PLAN)
    (tmp_path / "bad").mkdir()
    with pytest.raises(ModalignError, match=r"no mesh below .*\.glb, \.ply, \.obj"):
        render_folder(tmp_path / "bad", tmp_path / "out", PLAN)
    assert not (tmp_path / "out").exists()
    (tmp_path / "bad" / "x.glb").write_bytes(b"")
    with pytest.raises(ModalignError, match="none of 1 meshes can be drawn; the first: x.glb: it"):
        render_folder(tmp_path / "bad", tmp_path / "out", PLAN)


def test_the_command_says_what_became_of_each(folder, tmp_path):
    arguments = ["render", str(folder), "-o", str(tmp_path / "out"), "--size", "16"]
    done = CliRunner().invoke(app, [*arguments, "--workers", "0"])
    assert done.exit_code == 0, done.output
    assert "4 drawn, 0 were there, 2 skipped; 4 of 4 have captions" in done.output
    assert "  broken.glb: it cannot be read" in done.output
    again = CliRunner().invoke(app, [*arguments, "--workers", "0"])
    assert "0 drawn, 4 were there, 2 skipped" in again.output
