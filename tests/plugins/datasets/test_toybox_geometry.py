"""The toybox's geometry against itself: rays, distances, voxels, points and meshes."""

import numpy as np
import pytest
from modalign_plugins.datasets.toybox import FAMILIES, Toybox, grid, sample
from modalign_plugins.datasets.toybox.shapes import (
    Box,
    Capsule,
    Ellipsoid,
    Frustum,
    Prism,
    Tube,
)
from modalign_plugins.datasets.toybox.solids import Solid, hull, turned

SHAPES = (
    Box((0.4, 0.2, 0.3)),
    Ellipsoid((0.3, 0.3, 0.3)),
    Ellipsoid((0.4, 0.25, 0.3)),
    Frustum(0.3, 0.3, 0.3),
    Frustum(0.3, 0.4, 0.1),
    Frustum(0.1, 0.1, 0.5),
    Capsule(0.3, 0.15),
    Tube(0.25, 0.4, 0.25),
    Prism(((-0.4, -0.2), (0.4, -0.2), (0.1, 0.4)), 0.2),
)
POSE = turned("z", 33) @ turned("x", 71)
CENTER = np.array([0.05, -0.1, 0.08], np.float32)


def _family(name, count, seed=0):
    rng = np.random.default_rng([seed, FAMILIES.index(name)])
    return [sample(rng, "train", name) for _ in range(count)]


def _rays(count, seed=0):
    rng = np.random.default_rng(seed)
    origins = rng.normal(size=(count, 3))
    origins *= 2 / np.linalg.norm(origins, axis=1, keepdims=True)
    targets = rng.uniform(-0.5, 0.5, (count, 3))
    return origins.astype(np.float32), (targets - origins).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)
def test_rays_end_where_the_distance_is_zero_and_miss_nothing_that_marching_finds(shape):
    """Closed-form hits against a fine march along the same rays: a second implementation."""
    solid = Solid(shape, CENTER, POSE)
    origins, directions = _rays(300)
    first, normals = solid.intersect(origins, directions)
    hit = np.isfinite(first)
    points = origins[hit] + first[hit, None] * directions[hit]
    assert np.abs(solid.sdf(points)).max() < 2e-5
    steps = np.linspace(0, 2, 1201, dtype=np.float32)
    marched = origins[:, None] + steps[None, :, None] * directions[:, None]
    inside = solid.sdf(marched.reshape(-1, 3)).reshape(300, -1) < 0
    assert not inside[~hit].any()
    found = inside.any(axis=1) & hit
    assert found.sum() > 50
    np.testing.assert_allclose(
        first[found], steps[inside[found].argmax(axis=1)], atol=2.1 * float(steps[1])
    )
    assert ((normals[hit] * directions[hit]).sum(axis=1) < 1e-3).all()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)
def test_normals_point_along_the_gradient_of_the_distance(shape):
    solid = Solid(shape, CENTER, POSE)
    origins, directions = _rays(300, seed=1)
    first, normals = solid.intersect(origins, directions)
    hit = np.isfinite(first)
    points, normals = (origins + first[:, None] * directions)[hit], normals[hit]
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    slope = (solid.sdf(points + 1e-3 * normals) - solid.sdf(points - 1e-3 * normals)) / 2e-3
    # At an edge the gradient is no single vector; few points are that near to one.
    assert np.mean(np.abs(slope - 1) < 0.02) > 0.97


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)
def test_hulls_bound_what_rays_find_tightly(shape):
    solid = Solid(shape, CENTER, POSE)
    origins, directions = _rays(20000)
    first = solid.intersect(origins, directions)[0]
    hit = np.isfinite(first)
    points = origins[hit] + first[hit, None] * directions[hit]
    low, high = hull([solid]).bounds()
    assert (points > low - 1e-5).all()
    assert (points < high + 1e-5).all()
    np.testing.assert_allclose(points.min(axis=0), low[0], atol=0.03)
    np.testing.assert_allclose(points.max(axis=0), high[0], atol=0.03)


@pytest.mark.parametrize("family", FAMILIES)
def test_objects_are_normalised_thick_enough_and_made_of_named_parts(family):
    for toy in _family(family, 12):
        low, high = toy.hull.bounds()
        low, high = low.min(axis=0), high.max(axis=0)
        np.testing.assert_allclose(low + high, 0, atol=1e-5)
        assert (high - low).max() == pytest.approx(1, abs=1e-5)
        assert min(solid.shape.thickness for solid in toy.solids) >= 0.05
        assert [part.name for part in toy.parts[:2]] == [toy.kind.main, toy.kind.second]
        places = list(toy.kind.places)
        assert [places.index(part.name) for part in toy.parts] == sorted(
            places.index(part.name) for part in toy.parts
        )


def test_counts_are_counts_of_solids():
    """Families whose counted part has one solid per piece show as many as they claim."""
    for family in ("chair", "table", "ladder", "ice cream", "mushroom", "flower", "snowman"):
        for toy in _family(family, 8):
            name, number = toy.count
            assert len(toy.part(name).solids) == number


@pytest.mark.parametrize("family", FAMILIES[::5])
def test_occupancy_is_the_sign_of_the_distance(family):
    toy = _family(family, 1)[0]
    expected = toy.sdf(grid(24)).reshape(24, 24, 24) <= 0
    np.testing.assert_array_equal(toy.occupancy(24), expected)


@pytest.mark.parametrize("family", FAMILIES[::5])
def test_surface_points_lie_on_the_surface_in_surface_voxels_of_their_part(family):
    toy = _family(family, 1)[0]
    rng = np.random.default_rng(0)
    points, normals, parts = toy.surface(600, rng)
    assert points.shape == normals.shape == (600, 3)
    distances = toy.part_distances(points)
    assert np.abs(distances.min(axis=0)).max() < 2e-3
    assert np.abs(distances[parts, np.arange(600)]).max() < 2e-3
    assert np.mean(toy.sdf(points + 0.01 * normals) > 0) > 0.97
    voxels = toy.surface_voxels(32)
    cells = np.clip(((points + 0.5) * 32).astype(int), 0, 31)
    # A point may cut the corner of a cell whose corners and centre all lie on one side.
    assert voxels[tuple(cells.T)].mean() > 0.95
    assert not (voxels & (np.abs(toy.sdf(grid(32))).reshape(voxels.shape) > 0.04)).any()


def test_surface_points_are_uniform_over_a_boxs_faces():
    """Against algebra: each face of a cuboid gets its share of the area."""
    toys = _family("house", 30)
    toy = next(t for t in toys if not t.variation.extras)
    rng = np.random.default_rng(0)
    points, normals, parts = toy.surface(6000, rng)
    walls = toy.part("walls").solids[0]
    x, y, z = (2 * h for h in walls.shape.half)
    on = parts == 0
    left, right = on & (normals[:, 0] < -0.9), on & (normals[:, 0] > 0.9)
    back, bottom = on & (normals[:, 1] > 0.9), on & (normals[:, 2] < -0.9)
    areas = np.array([y * z, y * z, x * z, x * y])
    counts = np.array([mask.sum() for mask in (left, right, back, bottom)])
    np.testing.assert_allclose(counts / counts.sum(), areas / areas.sum(), atol=0.03)


def test_every_part_leaves_voxels_at_the_resolution_of_the_sparse_structure():
    for family in FAMILIES:
        toy = _family(family, 1)[0]
        centers = grid(64)[toy.surface_voxels(64).reshape(-1)]
        assert set(toy.part_ids(centers)) == set(range(len(toy.parts))), family


def test_meshes_follow_the_distance_and_enclose_the_inside():
    skimage = pytest.importorskip("skimage")
    assert skimage
    for family in ("mug", "chair", "fish"):
        toy = _family(family, 1)[0]
        vertices, faces, colors = toy.mesh(40)
        assert np.abs(toy.sdf(vertices)).max() < 0.012
        assert vertices.shape == colors.shape
        a, b, c = (vertices[faces[:, k]] for k in range(3))
        volume = (np.cross(a, b) * c).sum() / 6
        assert volume == pytest.approx(toy.occupancy(64).mean(), rel=0.08)


def test_colours_are_those_of_the_nearest_part():
    toy = Toybox().object(0)
    points, _, parts = toy.surface(300, np.random.default_rng(1))
    assert np.mean(toy.colors(points) == toy.palette[parts]) > 0.98


def test_families_are_told_apart_by_their_surface_voxels():
    """Nearest neighbour by intersection over union on 16^3, 12 examples a family, 4 queries."""
    gallery, queries = [], []
    for family in FAMILIES:
        voxels = [toy.surface_voxels(16).reshape(-1) for toy in _family(family, 16, seed=3)]
        gallery.append(voxels[:12])
        queries.append(voxels[12:])
    known = np.array(gallery, np.float32).reshape(len(FAMILIES) * 12, -1)
    asked = np.array(queries, np.float32).reshape(len(FAMILIES) * 4, -1)
    shared = asked @ known.T
    found = (shared / (asked.sum(1)[:, None] + known.sum(1) - shared)).argmax(axis=1) // 12
    assert np.mean(found == np.repeat(np.arange(len(FAMILIES)), 4)) >= 0.98
