"""Meshes and pictures: what files hold, how they look, and what is refused."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import trimesh
from PIL import Image

from modalign import Mesh, Picture, assets
from modalign.rendering import cameras, rasteriser
from modalign.specs import Asset


def box(low=(-0.3, -0.2, -0.1), high=(0.3, 0.2, 0.4)):
    """An axis-aligned box, red on top and blue below, without shared corners' normals."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))]
    colors = np.where(corners[:, 2:] > 0, [[1.0, 0.0, 0.0]], [[0.0, 0.2, 1.0]])
    low, high = np.array(low), np.array(high)
    return Mesh(low + corners * (high - low), np.array(faces), colors)


@pytest.fixture
def mesh():
    return box()


def read(path):
    return trimesh.load(path, force="mesh", process=False)


def test_a_mesh_is_an_asset(mesh):
    assert isinstance(mesh, Asset)
    assert mesh.vertices.dtype == np.float32
    assert mesh.faces.dtype == np.int64


def test_normals_point_out_of_the_geometry(mesh):
    centred = mesh.vertices - mesh.vertices.mean(axis=0)
    assert ((mesh.vertex_normals * centred).sum(axis=1) > 0).all()
    np.testing.assert_allclose(np.linalg.norm(mesh.vertex_normals, axis=1), 1, rtol=1e-6)


def test_given_normals_are_kept(mesh):
    up = np.tile([0.0, 0, 1], (8, 1))
    assert np.array_equal(
        Mesh(mesh.vertices, mesh.faces, mesh.vertex_colors, up).vertex_normals, up
    )


@pytest.mark.parametrize("extension", [".glb", ".obj"])
def test_what_is_up_in_the_world_is_up_in_a_viewer(mesh, tmp_path, extension):
    """(x, y, z) -> (x, z, -y): a rotation, so handedness and winding stay."""
    path = tmp_path / f"mesh{extension}"
    mesh.save(path)
    saved = read(path)
    x, y, z = mesh.vertices.T
    np.testing.assert_allclose(saved.vertices, np.stack([x, z, -y], axis=1), atol=1e-6)
    assert np.array_equal(saved.faces, mesh.faces)
    assert saved.volume == pytest.approx(0.6 * 0.4 * 0.5, rel=1e-5)


def test_ply_keeps_the_world(mesh, tmp_path):
    mesh.save(tmp_path / "mesh.ply")
    saved = read(tmp_path / "mesh.ply")
    np.testing.assert_allclose(saved.vertices, mesh.vertices, atol=1e-6)
    np.testing.assert_array_equal(
        saved.visual.vertex_colors[:, :3], np.rint(mesh.vertex_colors * 255)
    )


def test_glb_colours_are_linear_light(mesh, tmp_path):
    """glTF 2.0, 3.7.2.1: COLOR_0 is linear. Middle grey 0.5 is 0.214 of the light of white."""
    grey = Mesh(mesh.vertices, mesh.faces, np.full((8, 3), 0.5))
    grey.save(tmp_path / "grey.glb")
    colors = read(tmp_path / "grey.glb").visual.vertex_colors
    assert (colors == [55, 55, 55, 255]).all()
    np.testing.assert_allclose(
        assets.linear_from_srgb(np.float32([0, 0.04, 1])), [0, 0.0031, 1], atol=1e-4
    )


def test_glb_carries_normals_so_that_viewers_shade_smoothly(mesh, tmp_path):
    mesh.save(tmp_path / "mesh.glb")
    content = (tmp_path / "mesh.glb").read_bytes()
    length = int.from_bytes(content[12:16], "little")
    tree = json.loads(content[20 : 20 + length])
    accessor = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["NORMAL"]]
    view = tree["bufferViews"][accessor["bufferView"]]
    start = 20 + length + 8 + view["byteOffset"] + accessor.get("byteOffset", 0)
    stored = np.frombuffer(content, np.float32, 3 * accessor["count"], start).reshape(-1, 3)
    x, y, z = mesh.vertex_normals.T
    np.testing.assert_allclose(stored, np.stack([x, z, -y], axis=1), atol=1e-6)


@pytest.mark.parametrize("extension", assets.FORMATS["mesh"])
def test_equal_meshes_give_equal_files(tmp_path, extension):
    for name in ("one", "two"):
        box().save(tmp_path / f"{name}{extension}")
    assert (tmp_path / f"one{extension}").read_bytes() == (
        tmp_path / f"two{extension}"
    ).read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_an_unknown_extension_lists_the_known_ones(mesh, tmp_path):
    with pytest.raises(ValueError, match=r"unknown extension '.stl'; known: .glb, .ply, .obj"):
        mesh.save(tmp_path / "mesh.stl")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(mesh, tmp_path, monkeypatch):
    path = tmp_path / "mesh.glb"
    path.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        mesh.save(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"faces": np.array([[0, 1, 8]])}, "faces name vertices 0..8, but there are 8"),
        ({"faces": np.array([0, 1, 2])}, r"faces must be \(F, 3\)"),
        ({"vertex_colors": np.zeros((7, 3))}, r"vertex_colors must be \(8, 3\)"),
        ({"vertices": np.full((8, 3), np.nan)}, "vertices hold numbers that are not finite"),
    ],
)
def test_arrays_that_make_no_mesh_are_refused(mesh, change, message):
    arrays = {"vertices": mesh.vertices, "faces": mesh.faces, "vertex_colors": mesh.vertex_colors}
    with pytest.raises(ValueError, match=message):
        Mesh(**(arrays | change))


def test_a_mesh_without_faces_cannot_be_saved_but_looked_at(tmp_path):
    nothing = Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=int), np.zeros((0, 3)))
    with pytest.raises(ValueError, match="no faces"):
        nothing.save(tmp_path / "nothing.glb")
    assert (nothing.render(views=2, size=8) == 255).all()


def test_a_picture_shows_the_top_above_and_the_right_colours(mesh):
    pictures = mesh.render(views=4, size=64)
    assert pictures.shape == (4, 64, 64, 3)
    assert pictures.dtype == np.uint8
    for picture in pictures:
        covered = (picture < 250).any(axis=2)
        assert 0.05 < covered.mean() < 0.6
        rows = np.nonzero(covered.any(axis=1))[0]
        top, bottom = (picture[row][covered[row]].mean(axis=0) for row in (rows[2], rows[-3]))
        assert top[0] > top[2] + 50
        assert bottom[2] > bottom[0] + 50


def test_the_depth_buffer_shows_what_the_rays_show(mesh, monkeypatch):
    """Two implementations: Embree, and our own rasteriser, on intersecting boxes."""
    other = box((-0.1, -0.45, 0.0), (0.2, 0.45, 0.2))
    both = Mesh(
        np.concatenate([mesh.vertices, other.vertices]),
        np.concatenate([mesh.faces, other.faces + 8]),
        np.concatenate([mesh.vertex_colors, other.vertex_colors[:, ::-1]]),
    )
    assert rasteriser._embree(both.vertices, both.faces) is not None
    traced = both.render(views=3, size=48).astype(int)
    monkeypatch.setitem(sys.modules, "trimesh.ray.ray_pyembree", None)
    assert rasteriser._embree(both.vertices, both.faces) is None
    filled = both.render(views=3, size=48).astype(int)
    assert np.abs(traced - filled).max() <= 40  # a ray may fall on either side of an edge
    assert (np.abs(traced - filled) > 2).mean() < 0.005


def test_a_preview_is_four_views_side_by_side(mesh, tmp_path):
    mesh.preview(tmp_path / "mesh.png")
    with Image.open(tmp_path / "mesh.png") as picture:
        assert picture.size == (4 * 256, 256)


def test_a_camera_looks_at_the_origin_from_where_it_stands():
    """Facts of the paper: yaw 0 looks from +y, pitch rises to +z, OpenCV axes."""
    matrix = cameras.camera_extrinsics(yaw=0.0, pitch=np.radians(30), radius=2.0)
    where = -matrix[:3, :3].T @ matrix[:3, 3]
    np.testing.assert_allclose(where, [0, 2 * np.cos(np.pi / 6), 1], atol=1e-12)
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
    assert (matrix @ [0, 0, 0.1, 1])[1] < 0  # what is up in the world is up in the picture


def stripes(height=6, width=4):
    """Every pixel another colour, so that a turned or mirrored picture is another one."""
    return Picture(np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3) * 3)


def test_a_picture_is_an_asset_and_a_pillow_image():
    picture = stripes()
    assert isinstance(picture, Asset)
    assert picture.image.size == (4, 6)
    assert np.array_equal(np.asarray(picture.image), picture.pixels)


@pytest.mark.parametrize("extension", [".png", ".webp", ".PNG"])
def test_png_and_webp_keep_every_pixel(tmp_path, extension):
    stripes().save(tmp_path / f"x{extension}")
    with Image.open(tmp_path / f"x{extension}") as image:
        assert np.array_equal(np.asarray(image), stripes().pixels)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("extension", [".jpg", ".jpeg"])
def test_jpeg_is_near(tmp_path, extension):
    smooth = Picture(np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3)) * 3)
    smooth.save(tmp_path / f"x{extension}")
    with Image.open(tmp_path / f"x{extension}") as image:
        assert image.format == "JPEG"
        assert np.abs(np.asarray(image).astype(int) - smooth.pixels).max() <= 4


def test_a_picture_s_preview_is_a_png_of_it(tmp_path):
    stripes().preview(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert np.array_equal(np.asarray(image), stripes().pixels)


def test_a_picture_refuses_extensions_of_meshes_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"unknown extension '.glb'; known: .png, .jpg, .jpeg"):
        stripes().save(tmp_path / "x.glb")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3)),
    ],
)
def test_arrays_that_make_no_picture_are_refused(pixels):
    with pytest.raises(ValueError, match="pixels must be"):
        Picture(pixels)


def test_values_become_pixels_by_rounding_and_clipping():
    values = np.array([-1, 0, 0.5 / 255, 0.499, 1, 7], dtype=np.float32)
    picture = Picture.from_unit(np.repeat(values[:, None, None], 3, axis=2))
    assert picture.pixels[:, 0, 0].tolist() == [0, 0, 0, 127, 255, 255]
    with pytest.raises(ValueError, match="not finite"):
        Picture.from_unit(np.full((1, 1, 3), np.nan))
