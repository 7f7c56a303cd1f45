"""Voxels of a mesh: against dense points on its surface, and an exact overlap by clipping."""

from __future__ import annotations

import numpy as np
import pytest
from modalign_plugins.generators.trellis.voxels import inside, meets, open_edges, voxelize

from modalign import Mesh

CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)
CUBE_FACES = np.array(
    [
        *((0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1)),
        *((2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3)),
    ]
)


def mesh_of(vertices, faces):
    return Mesh(vertices, faces, np.zeros((len(vertices), 3)))


def crumpled(count=40, seed=0):
    """Triangles of all sizes and directions, some of them needles."""
    rng = np.random.default_rng(seed)
    corners = rng.normal(size=(count, 1, 3)) + rng.normal(size=(count, 3, 3)) * rng.choice(
        [0.02, 0.3, 2.0], (count, 1, 1)
    )
    corners[::5, 2] = corners[::5, 0] + (corners[::5, 1] - corners[::5, 0]) * 1.0001
    return mesh_of(corners.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3))


def clipped_area_is_left(corners, centre, half):
    """Sutherland-Hodgman: cut the triangle by the cube's six planes and see what remains."""
    polygon = list(corners)
    for axis in range(3):
        for sign in (1, -1):
            kept = []
            depth = [half - sign * (p[axis] - centre[axis]) for p in polygon]
            for k, (p, d) in enumerate(zip(polygon, depth, strict=True)):
                q, e = polygon[k - 1], depth[k - 1]
                if (d >= 0) != (e >= 0):
                    kept.append(q + (p - q) * e / (e - d))
                if d >= 0:
                    kept.append(p)
            polygon = kept
    return bool(polygon)


@pytest.mark.parametrize("resolution", [1, 10, 16])
def test_every_point_of_the_surface_lies_in_a_voxel_of_the_set(resolution):
    voxels = voxelize(crumpled(), resolution)
    rng = np.random.default_rng(1)
    shares = rng.dirichlet([0.5] * 3, (4000, len(voxels.corners)))  # dense at the corners, too
    points = np.einsum("kfc,fcx->kfx", shares, voxels.corners).reshape(-1, 3)
    hit = np.unique(np.floor((points + 0.5) * resolution).astype(int), axis=0)
    occupied = {tuple(cell) for cell in voxels.xyz.tolist()}
    assert {tuple(cell) for cell in hit.tolist()} <= occupied
    assert (voxels.xyz >= 0).all()
    assert (voxels.xyz < resolution).all()


def test_every_pair_meets_and_no_other_by_clipping():
    resolution = 7
    voxels = voxelize(crumpled(12), resolution)
    pairs = set(zip(voxels.voxel.tolist(), voxels.triangle.tolist(), strict=True))
    rows = {tuple(cell): row for row, cell in enumerate(voxels.xyz.tolist())}
    for cell in np.ndindex((resolution,) * 3):
        centre = (np.array(cell) + 0.5) / resolution - 0.5
        for number, corners in enumerate(voxels.corners):
            met = clipped_area_is_left(corners, centre, 0.5 / resolution)
            assert ((rows.get(cell), number) in pairs) == met, (cell, number)


def test_a_cube_on_the_grid_is_its_outer_layer_of_voxels():
    """Clipping keeps its faces out of voxels that do not exist; touching inner faces there are
    none.
    """
    voxels = voxelize(mesh_of(CUBE * 3 + 5, CUBE_FACES), 8)
    assert len(voxels.xyz) == 8**3 - 6**3
    assert voxels.open_edges == 0


def test_triangles_that_only_touch_a_cube_meet_it():
    touching = np.array([[[0.5, -1, -1], [0.5, 1, -1], [0.5, 0, 2]]])
    assert meets(touching, np.zeros((1, 3)), 0.5)
    assert not meets(touching + [[[1e-6, 0, 0]]], np.zeros((1, 3)), 0.5)


def test_the_longest_side_becomes_one_and_the_centre_zero():
    voxels = voxelize(mesh_of(CUBE * [4, 2, 1] + [7, 8, 9], CUBE_FACES), 16)
    low, high = voxels.corners.min((0, 1)), voxels.corners.max((0, 1))
    np.testing.assert_allclose(high - low, [1 - 2e-6, 0.5, 0.25])
    np.testing.assert_allclose(low + high, 0, atol=1e-12)


def test_open_edges_are_counted_after_equal_vertices_are_joined():
    loose = mesh_of(CUBE[CUBE_FACES].reshape(-1, 3), np.arange(36).reshape(-1, 3))
    assert open_edges(loose) == 0
    assert open_edges(mesh_of(CUBE, CUBE_FACES[1:])) == 3


def test_the_inside_of_a_cube_is_what_lies_between_its_faces():
    resolution = 10
    corners = (CUBE[CUBE_FACES].astype(float) - 0.5) * 0.55
    axis = np.abs(np.arange(resolution + 1) / resolution - 0.5) < 0.275
    expected = axis[:, None, None] & axis[:, None] & axis
    assert np.array_equal(inside(corners, resolution), expected * 3)
    assert np.array_equal(inside(corners[:, ::-1], resolution), expected * 3)  # inside out


def test_a_mesh_that_is_open_along_one_axis_splits_the_votes():
    votes = inside((CUBE[CUBE_FACES[4:]].astype(float) - 0.5) * 0.55, 10)
    assert votes[5, 5, 5] == 2


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (CUBE, np.zeros((0, 3)), "no triangles"),
        (CUBE[:1].repeat(3, 0), [[0, 1, 2]], "no area"),
        (CUBE * [1, 0, 0], CUBE_FACES, "all 12 triangles of the mesh have no area"),
    ],
)
def test_a_mesh_without_surface_is_refused(vertices, faces, message):
    with pytest.raises(ValueError, match=message):
        voxelize(mesh_of(vertices, np.array(faces)), 8)
