"""Meshes are repaired and thinned out, and what cannot be is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import trimesh

from modalign import Mesh, ModalignError
from modalign.meshing import clean, fill_holes, remove_hidden, simplify

from .scenes import sphere, together, torus, without

EMPTY = Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=int), np.zeros((0, 3)))


def solid(mesh):
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def test_triangles_without_area_and_copies_and_unused_vertices_go():
    whole = sphere()
    faces = np.concatenate([whole.faces, [[0, 0, 1], [5, 5, 5]], whole.faces[:3, [1, 2, 0]]])
    vertices = np.concatenate([[[9.0, 9, 9]], whole.vertices])
    colors = np.concatenate([[[0.0, 0, 0]], whole.vertex_colors])
    cleaned = clean(Mesh(vertices, faces + 1, colors))
    assert np.array_equal(cleaned.faces, whole.faces)
    assert np.array_equal(cleaned.vertices, whole.vertices)


@pytest.mark.parametrize("step", [clean, remove_hidden, fill_holes])
def test_an_empty_mesh_is_refused(step):
    with pytest.raises(ValueError, match="the mesh has no faces"):
        step(EMPTY)


def test_a_mesh_without_area_is_refused():
    line = np.linspace(0, 1, 9)[:, None] * [[1.0, 2, 3]]
    faces = np.arange(9).reshape(3, 3)
    with pytest.raises(ValueError, match="no area: each of its 3 triangles is a line or a point"):
        clean(Mesh(line, faces, np.zeros((9, 3))))


@pytest.mark.parametrize("wanted", [{"faces": 2000}, {"ratio": 2000 / 6400}])
def test_a_simplified_torus_has_fewer_faces_and_nearly_the_same_volume(wanted):
    whole = torus()
    simple = simplify(whole, **wanted)
    assert len(simple.faces) == pytest.approx(2000, abs=4)
    assert solid(simple).is_watertight
    assert solid(simple).volume == pytest.approx(solid(whole).volume, rel=0.01)


def test_colours_are_those_of_the_nearest_vertex_that_collapsed():
    """Colours that tell the position: a vertex moves less than the longest edge, pi 0.96 / 80."""
    whole = torus(colors=lambda points: points + 0.5)
    simple = simplify(whole, faces=2000)
    assert np.abs(simple.vertex_colors - (simple.vertices + 0.5)).max() < np.pi * 0.96 / 80


def test_a_mesh_with_few_faces_stays_as_it_is():
    whole = sphere()
    assert simplify(whole, faces=10**6) is whole
    assert simplify(whole, ratio=1) is whole


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "either faces=... or ratio=..."),
        ({"faces": 10, "ratio": 0.5}, "either faces=... or ratio=..."),
        ({"faces": 3}, "at least 4 faces, faces=3"),
        ({"ratio": 0.0}, "above 0 and up to 1, got 0.0"),
        ({"ratio": float("nan")}, "above 0 and up to 1, got nan"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        simplify(sphere(), **wanted)


def test_a_shell_inside_goes_and_what_is_outside_stays():
    outer, inner = sphere(0.4), sphere(0.3, inward=True)
    left = remove_hidden(together(outer, inner), looks=24)
    assert np.array_equal(left.faces, outer.faces)
    assert np.array_equal(left.vertices, outer.vertices)


def test_a_pocket_that_hangs_on_the_outside_loses_its_inside_and_keeps_a_rim():
    """A sphere joined by a thin tube to one inside of it, as cracks in generated meshes are."""
    ring = trimesh.creation.revolve(
        [[0.0, -0.4], *[(0.4 * np.cos(a), 0.4 * np.sin(a)) for a in np.linspace(-1.5, 1.53, 60)]]
        + [(0.015, 0.35)]
        + [(0.3 * np.cos(a), 0.3 * np.sin(a)) for a in np.linspace(1.5, -1.5, 60)]
        + [[0.0, -0.3]],
        sections=48,
    )
    mesh = Mesh(ring.vertices, ring.faces, np.full((len(ring.vertices), 3), 0.5))
    left = remove_hidden(mesh, looks=24)
    radius = np.linalg.norm(left.vertices, axis=1)
    kept = np.linalg.norm(mesh.vertices, axis=1) > 0.37
    assert (radius > 0.37).sum() == kept.sum()
    assert (radius < 0.32).sum() < 0.2 * (~kept).sum()


def test_an_open_bowl_is_seen_from_inside_and_stays():
    bowl = without(sphere(), (0, 0, 0.4), 0.3)
    assert len(remove_hidden(bowl, looks=24).faces) == len(bowl.faces)


def test_a_small_hole_is_closed_with_the_colours_around_it():
    whole = torus(colors=lambda points: np.broadcast_to([0.2, 0.4, 0.6], points.shape))
    open_ = clean(without(whole, (0.48, 0, 0), 0.03))
    assert not solid(open_).is_watertight
    closed = fill_holes(open_)
    assert solid(closed).is_watertight
    assert solid(closed).volume == pytest.approx(solid(whole).volume, rel=0.002)
    np.testing.assert_allclose(closed.vertex_colors, [[0.2, 0.4, 0.6]] * len(closed.vertices))


def test_a_large_hole_stays_open():
    open_ = clean(without(torus(), (0.48, 0, 0), 0.1))
    assert len(fill_holes(open_, max_edges=12).faces) == len(open_.faces)
    assert len(fill_holes(open_, max_edges=200).faces) > len(open_.faces)


def test_what_is_closed_is_left_alone():
    whole = sphere()
    assert fill_holes(whole) is whole


def test_an_edge_of_three_faces_is_cut_and_the_mesh_closed():
    whole = clean(without(torus(), (0.48, 0, 0), 0.03))
    a, b, _ = whole.faces[0]
    fin = Mesh(
        np.concatenate([whole.vertices, [[0, 0, 0.5]]]),
        np.concatenate([whole.faces, [[a, b, len(whole.vertices)]]]),
        np.concatenate([whole.vertex_colors, [[1, 1, 1]]]),
    )
    closed = fill_holes(fin)
    assert solid(closed).is_watertight
    assert solid(closed).volume > 0


def test_a_hole_has_three_edges():
    with pytest.raises(ValueError, match="at least 3 edges, max_edges=2"):
        fill_holes(torus(), max_edges=2)


@pytest.mark.parametrize(
    ("module", "step"),
    [
        ("fast_simplification", lambda: simplify(sphere(), faces=100)),
        ("pymeshfix", lambda: fill_holes(without(sphere(), (0, 0, 0.4), 0.1))),
    ],
)
def test_without_its_library_a_step_says_what_to_install(monkeypatch, module, step):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModalignError, match=rf"needs {module}.*pip install modalign\[mesh\]"):
        step()
