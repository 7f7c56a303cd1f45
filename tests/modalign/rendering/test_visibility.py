"""What cameras see of shapes whose visible sides algebra knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from modalign.rendering import visibility
from modalign.rendering.cameras import evaluation
from modalign.rendering.visibility import TOLERANCE, surface_points, visible, visible_counts

CASTERS = ["_embree", "_planar"]
CAMERAS = evaluation(4)
# A unit cube's sides by the axis that they face: four corners each, counter-clockwise outside.
SIDES = {
    "+x": [(1, -1, -1), (1, 1, -1), (1, 1, 1), (1, -1, 1)],
    "-x": [(-1, 1, -1), (-1, -1, -1), (-1, -1, 1), (-1, 1, 1)],
    "+y": [(1, 1, -1), (-1, 1, -1), (-1, 1, 1), (1, 1, 1)],
    "-y": [(-1, -1, -1), (1, -1, -1), (1, -1, 1), (-1, -1, 1)],
    "+z": [(-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)],
    "-z": [(-1, 1, -1), (1, 1, -1), (1, -1, -1), (-1, -1, -1)],
}


def box(without=(), half=(0.5, 0.5, 0.5)):
    """Vertices and faces of a box, without some of its sides."""
    squares = [corners for side, corners in SIDES.items() if side not in without]
    vertices = np.array(squares, dtype=np.float32).reshape(-1, 3) * np.array(half, np.float32)
    faces = np.arange(len(squares))[:, None, None] * 4 + np.array([[0, 1, 2], [0, 2, 3]])
    return vertices, faces.reshape(-1, 3)


def ball(rings=12):
    """A closed convex surface of many triangles."""
    sphere = trimesh.creation.uv_sphere(0.5, count=[rings, rings * 2])
    return sphere.vertices.astype(np.float32), np.asarray(sphere.faces)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=CASTERS)
def caster(request):
    def make(vertices, faces):
        found = getattr(visibility, request.param)(vertices, faces)
        assert found is not None, "embreex is installed wherever it has a wheel"
        return found

    return make


def test_points_fall_on_triangles_in_proportion_to_their_area():
    """Expected shares are areas; five standard deviations of 20,000 draws are allowed."""
    vertices = np.array(
        [[0, 0, 0], [1, 0, 0], [0, 1, 0], [3, 0, 0], [6, 0, 0], [3, 3, 0], [9, 9, 9]], np.float32
    )
    faces = np.array([[0, 1, 2], [6, 6, 6], [3, 4, 5]])
    points = surface_points(vertices, faces, 20_000, seeded())
    first = points[:, 0] < 2
    assert abs(first.mean() - 0.1) < 5 * np.sqrt(0.1 * 0.9 / 20_000)
    assert not (points == 9).any(), "a triangle without area holds no point"
    large = points[~first] - [3, 0, 0]
    assert (large.min(axis=0) >= 0).all()
    assert (large[:, 0] + large[:, 1] <= 3 + 1e-12).all()
    # The centroid of a triangle of legs 3 is (1, 1); each coordinate varies by 3 / sqrt(18).
    deviation = 3 / np.sqrt(18) / np.sqrt(len(large))
    np.testing.assert_allclose(large[:, :2].mean(axis=0), 1, atol=5 * deviation)


def test_the_same_seed_draws_the_same_points_and_another_draws_others():
    vertices, faces = box()
    first, again = (surface_points(vertices, faces, 50, seeded(3)) for _ in range(2))
    assert (first == again).all()
    assert (first != surface_points(vertices, faces, 50, seeded(4))).any()


@pytest.mark.parametrize("faces", [np.zeros((0, 3), np.int64), np.array([[0, 1, 1]])])
def test_a_mesh_without_area_is_refused(faces):
    with pytest.raises(ValueError, match="no area"):
        surface_points(np.eye(3, dtype=np.float32), faces, 5, seeded())


@pytest.mark.parametrize("shape", [box(), ball(), box(half=(0.5, 0.1, 0.3))])
def test_a_convex_object_shows_exactly_the_points_whose_sides_face_the_camera(caster, shape):
    """A convex body hides nothing before its facing sides; behind, the ray runs through the body.

    Points whose ray leaves the body within the tolerance of where it entered are neither.
    """
    vertices, faces = shape
    points = surface_points(vertices, faces, 2000, seeded())
    a, b, c = np.moveaxis(vertices[faces].astype(np.float64), 1, 0)
    normals = np.cross(b - a, c - a)
    normals = normals[np.linalg.norm(normals, axis=1) > 1e-6]
    planes = a[np.linalg.norm(np.cross(b - a, c - a), axis=1) > 1e-6]
    for camera in CAMERAS:
        origin = camera.position
        rays = points - origin
        distance = np.linalg.norm(rays, axis=1)
        rays /= distance[:, None]
        # A second implementation: a convex body is the part of space behind all its planes.
        facing = rays @ normals.T
        with np.errstate(divide="ignore"):
            where = ((planes - origin) * normals).sum(axis=1) / facing
        enters = np.where(facing < 0, where, -np.inf).max(axis=1)
        front = enters >= distance - 1e-5
        doubtful = ~front & (enters >= distance - 1.1 * TOLERANCE)
        seen = visible(caster(vertices, faces), camera, points)
        assert (seen == front)[~doubtful].all()
        assert 0.1 < front.mean() < 0.7
        assert doubtful.mean() < 0.02


@pytest.mark.parametrize(("open_side", "best"), [("+y", 0), ("+x", 1), ("-y", 2), ("-x", 3)])
def test_a_box_shows_most_through_its_open_side(open_side, best):
    """From there its inside is seen beside its top; from elsewhere two outer sides are."""
    vertices, faces = box(without=(open_side,))
    points = surface_points(vertices, faces, 2000, seeded())
    counts = visible_counts(vertices, faces, CAMERAS, points)
    assert int(np.argmax(counts)) == best
    assert sorted(counts)[-1] > 1.3 * sorted(counts)[-2]


def test_a_screen_hides_what_stands_behind_it(caster):
    """A small plate at y = 0 behind a large one at y = 0.4: seen from -y, not from +y."""
    plate = np.array(SIDES["+y"], dtype=np.float32) * [1, 0, 1]
    large, small = plate * 0.5 + [0, 0.4, 0], plate * 0.05
    vertices = np.concatenate([large, small]).astype(np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    points = surface_points(vertices, faces[2:], 100, seeded())
    first_hits = caster(vertices, faces)
    assert not visible(first_hits, CAMERAS[0], points).any()
    assert visible(first_hits, CAMERAS[2], points).all()


def test_rays_that_meet_nothing_are_infinite(caster):
    vertices, faces = box(half=(0.1, 0.1, 0.1))
    assert np.isinf(caster(vertices, faces)(CAMERAS[0], np.array([[0.4, 0.0, 0.0]]))).all()


def test_both_casters_find_the_same_distances():
    knot = trimesh.creation.torus(0.35, 0.12, major_sections=24, minor_sections=12)
    vertices, faces = knot.vertices.astype(np.float32), np.asarray(knot.faces)
    points = surface_points(vertices, faces, 1000, seeded())
    embree, planar = (getattr(visibility, name)(vertices, faces) for name in CASTERS)
    for camera in CAMERAS:
        near = np.isclose(embree(camera, points), planar(camera, points), atol=1e-4)
        assert near.mean() > 0.998  # rays through the edge of a silhouette may pass either side
