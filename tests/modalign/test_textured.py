"""Textured meshes: what their files hold, how they look, and what is refused."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import trimesh
from PIL import Image

from modalign.assets import FORMATS, TexturedMesh
from modalign.assets.textured import write_together
from modalign.specs import Asset

from .boxes import BLUE, RED, painted
from .glb import opened


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_textured_mesh_is_an_asset():
    assert isinstance(painted(), Asset)


def test_a_glb_holds_mesh_material_and_texture_as_displayed(tmp_path):
    """glTF 2.0: v counts downwards, a base colour texture is sRGB, y is up."""
    asset = painted()
    asset.save(tmp_path / "box.glb")
    tree, arrays = opened((tmp_path / "box.glb").read_bytes())
    x, y, z = asset.vertices.T
    np.testing.assert_array_equal(arrays["POSITION"], np.stack([x, z, -y], axis=1))
    np.testing.assert_array_equal(arrays["TEXCOORD_0"], asset.uv)
    np.testing.assert_array_equal(arrays["indices"].reshape(-1, 3), asset.faces)
    with Image.open(io.BytesIO(arrays["image"])) as image:
        assert np.array_equal(np.asarray(image), asset.texture)
    surface = tree["materials"][0]["pbrMetallicRoughness"]
    assert (surface["metallicFactor"], surface["roughnessFactor"]) == (0, 1)
    assert tree["textures"][surface["baseColorTexture"]["index"]]["source"] == 0


@pytest.mark.parametrize("extension", [".glb", ".obj"])
def test_a_second_reader_finds_the_right_colour_on_each_side(tmp_path, extension):
    """trimesh: red above, blue towards +z, which glTF calls the front."""
    path = tmp_path / f"box{extension}"
    painted().save(path)
    saved = trimesh.load(path, force="mesh", process=False)
    colors = saved.visual.to_color().vertex_colors[:, :3]
    assert (colors[saved.vertex_normals[:, 1] > 0.9] == RED).all()
    assert (colors[saved.vertex_normals[:, 2] > 0.9] == BLUE).all()


@pytest.mark.parametrize("extension", FORMATS["mesh"])
def test_equal_meshes_give_equal_files(tmp_path, extension):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        painted().save(tmp_path / name / f"box{extension}")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_an_obj_comes_with_its_material_and_texture(tmp_path):
    painted().save(tmp_path / "box.obj")
    assert set(files(tmp_path)) == {"box.obj", "box.mtl", "box_texture.png"}
    assert b"mtllib box.mtl" in (tmp_path / "box.obj").read_bytes()
    assert b"map_Kd box_texture.png" in (tmp_path / "box.mtl").read_bytes()


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_of_files_that_belong_together_all_are_written_or_none(tmp_path, monkeypatch, fails):
    """Whichever of three moves fails, and whether a file was there before or not."""
    (tmp_path / "b").write_bytes(b"old")
    move, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == fails + 1:
            raise OSError(28, "No space left on device")
        move(source, target)

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(OSError, match="No space"):
        write_together({tmp_path / name: b"new" for name in "abc"})
    assert files(tmp_path) == {"b": b"old"}
    monkeypatch.undo()
    write_together({tmp_path / name: b"new" for name in "abc"})
    assert files(tmp_path) == {"a": b"new", "b": b"new", "c": b"new"}


def test_a_ply_has_vertex_colours_and_a_line_says_so(tmp_path, caplog):
    painted().save(tmp_path / "box.ply")
    assert "box.ply: PLY has no textures; wrote vertex colours instead" in caplog.text
    saved = trimesh.load(tmp_path / "box.ply", process=False)
    assert (saved.visual.vertex_colors[20:, :3] == RED).all()


def test_colours_between_texels_are_bilinear():
    texture = np.zeros((2, 2, 3), np.uint8)
    texture[0, 1] = 200
    box = painted()
    asset = TexturedMesh(box.vertices, box.faces, box.uv, texture)
    found = asset.colors_at(np.array([[0.75, 0.25], [0.5, 0.25], [0.5, 0.5], [1, 0]]))[:, 0]
    np.testing.assert_allclose(found * 255, [200, 100, 50, 200], atol=1e-4)


def test_a_picture_shows_the_texture_as_it_shows_vertex_colours(tmp_path):
    """Sides of one colour each: the same mesh with vertex colours must look the same."""
    asset = painted()
    drawn, plain = (made.render(views=4, size=64).astype(int) for made in (asset, asset.mesh))
    assert drawn.shape == (4, 64, 64, 3)
    assert np.abs(drawn - plain).max() <= 1
    asset.preview(tmp_path / "box.png")
    with Image.open(tmp_path / "box.png") as picture:
        assert picture.size == (4 * 256, 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uv": np.zeros((3, 2))}, r"uv must be \(24, 2\)"),
        ({"uv": np.full((24, 2), 1.5)}, "uv must lie in 0..1"),
        ({"uv": np.full((24, 2), np.nan)}, "uv must lie in 0..1"),
        ({"texture": np.zeros((4, 4, 3))}, "texture must be .* of uint8"),
        ({"texture": np.zeros((4, 4), np.uint8)}, "texture must be"),
        ({"vertices": np.full((24, 3), np.inf)}, "vertices hold numbers that are not finite"),
        ({"faces": np.array([[0, 1, 24]])}, "faces name vertices 0..24"),
        ({"roughness": 2.0}, "roughness must be 0 to 1, got 2.0"),
        ({"metallic": float("nan")}, "metallic must be 0 to 1, got nan"),
    ],
)
def test_arrays_that_make_no_textured_mesh_are_refused(change, message):
    box = painted()
    names = ("vertices", "faces", "uv", "texture")
    with pytest.raises(ValueError, match=message):
        TexturedMesh(**({name: getattr(box, name) for name in names} | change))


def test_nothing_and_unknown_extensions_are_not_saved(tmp_path):
    box = painted()
    nothing = TexturedMesh(box.vertices, np.zeros((0, 3), dtype=int), box.uv, box.texture)
    with pytest.raises(ValueError, match="no faces"):
        nothing.save(tmp_path / "box.obj")
    with pytest.raises(ValueError, match="unknown extension"):
        box.save(tmp_path / "box.stl")
    assert (nothing.render(views=1, size=8) == 255).all()
    assert files(tmp_path) == {}
