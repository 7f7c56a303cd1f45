"""Views of one object: which, where from, and what their files say."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from modalign import Mesh, ModalignError
from modalign.data.views import BALL, ViewPlan, crop_box, cropped, object_files, training_views
from tests.modalign.boxes import coloured
from tests.modalign.rendering.test_visibility import box


@pytest.fixture
def mesh_file(tmp_path):
    coloured().save(tmp_path / "box.glb")
    return tmp_path / "box.glb"


def told(files):
    return json.loads(files["transforms.json"])


def pixels(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


@pytest.mark.parametrize(("open_side", "yaw"), [("+y", 0), ("+x", 90), ("-y", 180), ("-x", 270)])
def test_the_view_into_an_open_box_is_chosen(tmp_path, open_side, yaw):
    vertices, faces = box(without=(open_side,))
    Mesh(vertices, faces, np.full_like(vertices, 0.5)).save(tmp_path / "open.ply")
    found = told(object_files(tmp_path / "open.ply", ViewPlan(size=16)))
    counts = found["visibility"]["visible"]
    assert np.degrees(found["frames"][0]["yaw"]) == pytest.approx(yaw)
    assert np.argmax(counts) == yaw // 90


def test_all_four_come_the_one_that_shows_most_first(mesh_file):
    """Of a picture's samples `renders` takes the first ones."""
    found = told(object_files(mesh_file, ViewPlan(views="4", size=16)))
    visible = dict(zip(found["visibility"]["yaws"], found["visibility"]["visible"], strict=True))
    shown = [visible[frame["yaw"]] for frame in found["frames"]]
    assert len(shown) == 4
    assert shown == sorted(shown, reverse=True)
    assert [frame["file_path"] for frame in found["frames"]] == [f"00{k}.png" for k in range(4)]


def test_the_lowest_yaw_wins_a_tie(mesh_file, monkeypatch):
    monkeypatch.setattr("modalign.data.views.visible_counts", lambda *_: [7, 9, 9, 9])
    (frame,) = told(object_files(mesh_file, ViewPlan(size=16)))["frames"]
    assert frame["yaw"] == pytest.approx(np.pi / 2)


@pytest.mark.parametrize("views", ["4", "24"])
def test_transforms_project_the_object_to_where_it_is_seen(mesh_file, views):
    """A second implementation of the camera, from the file alone: Blender's axes, a pinhole.

    The corners of the box lie on the edge of what alpha covers, to a pixel.
    """
    size = 64
    files = object_files(mesh_file, ViewPlan(views=views, size=size))
    found = told(files)
    corners = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, -1)
    assert len(found["frames"]) == int(views)
    for frame in found["frames"]:
        matrix = np.array(frame["transform_matrix"])
        x, y, z = matrix[:3, :3].T @ (corners - matrix[:3, 3:])
        half = np.tan(frame["camera_angle_x"] / 2)
        u, v = (0.5 + x / -z / half / 2) * size, (0.5 - y / -z / half / 2) * size
        rows, columns = np.nonzero(pixels(files[frame["file_path"]])[..., 3])
        expected = [u.min(), u.max(), v.min(), v.max()]
        seen = [columns.min(), columns.max() + 1, rows.min(), rows.max() + 1]
        np.testing.assert_allclose(seen, np.clip(expected, 0, size), atol=1.01)
        assert np.linalg.norm(matrix[:3, 3]) == pytest.approx(frame["radius"])
        assert matrix[2, 3] == pytest.approx(frame["radius"] * np.sin(frame["pitch"]))


def test_the_files_scale_and_offset_bring_the_mesh_into_the_cube(tmp_path):
    moved = Mesh(coloured().vertices * 3 + [5, -2, 1], coloured().faces, coloured().vertex_colors)
    moved.save(tmp_path / "moved.ply")
    found = told(object_files(tmp_path / "moved.ply", ViewPlan(size=16)))
    placed = moved.vertices * found["scale"] + found["offset"]
    np.testing.assert_allclose([placed.min(axis=0), placed.max(axis=0)], found["aabb"], atol=1e-6)


def test_training_views_fill_every_lens_with_the_ball_around_the_cube():
    """Bounds by algebra: radius sqrt(3) / 2 / sin(fov / 2), from 1.51 at 70 degrees to 9.94 at 10.

    Heights fall into 24 equal strata, so that the directions are evenly spread.
    """
    views = training_views(torch.Generator().manual_seed(1))
    again = training_views(torch.Generator().manual_seed(1))
    other = training_views(torch.Generator().manual_seed(2))
    assert views == again
    assert all(a != b for a, b in zip(views, other, strict=True))
    for view in views:
        assert view.radius * np.sin(view.fov / 2) == pytest.approx(BALL)
        assert np.radians(10) <= view.fov <= np.radians(70)
        assert 1.509 < view.radius < 9.94
    strata = sorted(int((1 + np.sin(view.pitch)) / 2 * 24) for view in views)
    assert strata == list(range(24))


def test_points_follow_from_the_content_and_the_seed_alone(mesh_file, tmp_path):
    copy = tmp_path / "elsewhere" / "other.glb"
    copy.parent.mkdir()
    copy.write_bytes(mesh_file.read_bytes())
    plan = ViewPlan(size=16)
    first, second = told(object_files(mesh_file, plan)), told(object_files(copy, plan))
    assert first["source"].pop("file") == "box.glb"
    assert second["source"].pop("file") == "other.glb"
    assert first == second
    other = told(object_files(mesh_file, ViewPlan(size=16, seed=1)))
    assert other["visibility"]["visible"] != first["visibility"]["visible"]


def test_a_crop_is_a_square_of_1_2_times_the_object():
    """By hand: columns 10 to 30 and rows 20 to 24 have their middle at (20, 22), half a side 12."""
    alpha = np.zeros((40, 40), np.uint8)
    alpha[20:25, 10:31] = 255
    assert crop_box(alpha) == (8, 10, 32, 34)
    picture = np.dstack([np.full((40, 40, 3), 200, np.uint8), alpha])
    shown = cropped(picture, (8, 10, 32, 34), 24)
    assert shown.shape == (24, 24, 3)
    assert (shown[10:15, 2:23] == 200).all()
    assert shown.sum() == 200 * 3 * 5 * 21


def test_a_cropped_picture_says_which_part_it_is(mesh_file):
    whole, part = (object_files(mesh_file, ViewPlan(size=64, crop=crop)) for crop in (False, True))
    assert pixels(whole["000.png"]).shape == (64, 64, 4)
    shown = pixels(part["000.png"])
    assert shown.shape == (64, 64, 3)
    left, top, right, bottom = (edge * 64 for edge in told(part)["frames"][0]["crop"])
    rows, columns = np.nonzero(pixels(whole["000.png"])[..., 3])
    assert max(np.ptp(rows), np.ptp(columns)) * 1.2 == pytest.approx(right - left, abs=2)
    assert right - left == pytest.approx(bottom - top, abs=0.6)
    assert (columns.min() + columns.max()) / 2 == pytest.approx((left + right) / 2, abs=1)
    rows, columns = np.nonzero(shown.max(axis=2) > 60)  # not the faint ringing of the filter
    assert max(np.ptp(rows), np.ptp(columns)) == pytest.approx(64 / 1.2, abs=2)


@pytest.mark.parametrize("size", [16, 100])
def test_pictures_have_the_size_that_was_asked_for(mesh_file, size):
    assert pixels(object_files(mesh_file, ViewPlan(size=size))["000.png"]).shape == (size, size, 4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"views": "3"}, "'3' is unknown"), ({"size": 0}, "size is 0"), ({"size": 9999}, "16 to")],
)
def test_a_plan_that_makes_no_pictures_is_refused(changes, reason):
    with pytest.raises(ModalignError, match=reason):
        ViewPlan(**changes)
