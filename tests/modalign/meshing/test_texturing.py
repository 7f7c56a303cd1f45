"""Pictures become a texture: right colours at the right places, and one line for what cannot be."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from modalign import Mesh, ModalignError
from modalign.assets import TexturedMesh
from modalign.meshing import View, bake, textured, unwrap
from modalign.meshing.baking import blend, complete, fill
from modalign.meshing.fitting import fit
from modalign.meshing.layout import Layout, texels
from modalign.meshing.spreading import spread
from modalign.meshing.views import sight
from modalign.rendering import cameras
from modalign.rendering.cameras import Camera, look
from modalign.rendering.rasteriser import intersector

from .scenes import checker, painted, psnr, sphere, torus, vertex_coloured, views


@pytest.fixture(scope="module")
def truth():
    return torus(colors=checker)


@pytest.fixture(scope="module")
def pictures(truth):
    return views(truth, count=16, size=128)


@pytest.fixture(scope="module")
def layout(truth):
    return unwrap(truth, 256)


def test_a_layout_has_the_faces_of_its_mesh_in_their_order(truth, layout):
    assert np.array_equal(layout.source[layout.faces], truth.faces)
    assert layout.uv.shape == (len(layout.source), 2)
    assert layout.uv.min() >= 0
    assert layout.uv.max() <= 1


def test_charts_do_not_overlap(layout):
    """Each texel's centre lies in one face: summed, the faces' areas are the covered area."""
    a, b, c = np.moveaxis(layout.uv[layout.faces].astype(float), 1, 0)
    first, second = b - a, c - a
    area = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]).sum() / 2
    surface = texels(layout, 256)
    inside = (surface.weights >= 0).all(axis=1).sum() / 256**2
    assert inside == pytest.approx(area, rel=0.02)


def test_texels_lie_where_their_corners_put_them(layout):
    surface = texels(layout, 256)
    assert len(np.unique(surface.index)) == len(surface.index)
    corner = layout.uv[layout.faces[surface.triangle]]
    at = (corner * surface.weights[..., None]).sum(axis=1)
    centre = np.stack([surface.index % 256 + 0.5, surface.index // 256 + 0.5], axis=1) / 256
    np.testing.assert_allclose(at, centre, atol=1e-5)
    assert (surface.weights < 0).any()  # the ring outside


def test_a_constant_object_gives_a_constant_texture(truth, layout):
    same = [0.25, 0.5, 0.75]
    pictures = views(truth, 8, 96, lambda points: np.broadcast_to(same, points.shape))
    texture = bake(layout, pictures, 256, passes=0)
    assert np.abs(texture.astype(int) - np.rint(np.array(same) * 255)).max() <= 1


def test_blending_beats_vertex_colours_and_fitting_beats_blending(truth, layout, pictures):
    """On views that nobody baked from; texturing.py has figures of a larger run."""

    def asset(passes):
        texture = bake(layout, pictures, 256, passes=passes)
        return TexturedMesh(truth.vertices[layout.source], layout.faces, layout.uv, texture)

    plain = psnr(truth, vertex_coloured(truth), truth)
    blended, fitted = (psnr(made, painted(made), truth) for made in (asset(0), asset(4)))
    assert blended > plain + 1
    assert fitted > blended + 0.5


def test_what_is_behind_does_not_get_the_colours_of_what_is_before():
    """A small sphere hides the middle of a large one from a camera: no texel there is seen."""
    near, far = sphere(0.1, 2), sphere(0.3, 3)
    both = Mesh(
        np.concatenate([far.vertices, near.vertices + [0, 0.6, 0]]),
        np.concatenate([far.faces, near.faces + len(far.vertices)]),
        np.zeros((len(far.vertices) + len(near.vertices), 3)),
    )
    camera = look(0.0, 0.0, 2.0, np.radians(40))
    triangle, _ = intersector(both.vertices, both.faces)(camera, 256)
    color = np.zeros((256 * 256, 3))
    color[triangle >= len(far.faces)] = [1, 0, 0]
    color[(triangle >= 0) & (triangle < len(far.faces))] = [0, 0, 1]
    alpha = (triangle >= 0).reshape(256, 256)
    layout = unwrap(both, 256)
    surface = texels(layout, 256)
    found, weight = blend(layout, surface, [View(camera, color.reshape(256, 256, 3), alpha)])
    of_far = surface.triangle < len(far.faces)
    assert weight[of_far].any()
    assert found[of_far & (weight > 0)][:, 0].max() < 0.02
    inside = (surface.weights >= 0).all(axis=1)
    place = (both.vertices[both.faces[surface.triangle]] * surface.weights[..., None]).sum(axis=1)
    hidden = of_far & inside & (place[:, 1] > 0.2) & (np.hypot(place[:, 0], place[:, 2]) < 0.1)
    assert hidden.any()
    assert (weight[hidden] == 0).all()


def test_a_half_transparent_pixel_has_the_object_s_own_colour():
    mesh = sphere()
    camera = look(0, 0, 2, np.radians(40))
    alpha = np.full((64, 64), 0.8)
    view = View(camera, alpha[..., None] * [0.5, 0.25, 1.0], alpha)
    shown = sight(view, mesh, intersector(mesh.vertices, mesh.faces))
    np.testing.assert_allclose(shown.color[shown.trust >= 1][0], [0.5, 0.25, 1], atol=1e-6)


def test_depth_is_the_distance_along_the_axis():
    """A sphere of radius 0.4 at distance 2: 1.6 in the middle."""
    mesh = sphere(subdivisions=4)
    view = View(look(0.3, 0.2, 2, np.radians(40)), np.ones((65, 65, 3)), np.ones((65, 65)))
    shown = sight(view, mesh, intersector(mesh.vertices, mesh.faces))
    assert shown.depth.reshape(65, 65)[32, 32] == pytest.approx(1.6, abs=1e-3)
    assert np.isinf(shown.depth[0])
    assert shown.trust[0] == 0


def square(size, colors):
    """Two triangles that fill the texture, before a camera that sees texel for pixel."""
    corners = np.array([[0.0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]])
    faces = np.array([[0, 2, 1], [0, 3, 2]])
    mesh = Mesh(corners, faces, np.full((4, 3), 0.5))
    layout = Layout(mesh, faces, corners[:, :2].astype(np.float32), np.arange(4))
    return layout, View(Camera(np.eye(4), np.eye(3)), colors, np.ones((size, size)))


def test_a_picture_that_is_the_texture_comes_back():
    """Texel centres are pixel centres: blending and fitting must both return the picture."""
    colors = np.random.default_rng(0).random((32, 32, 3)).astype(np.float32)
    layout, view = square(32, colors)
    surface = texels(layout, 32)
    found, weight = blend(layout, surface, [view])
    assert (weight > 0).all()
    flat = np.zeros((32 * 32, 3))
    flat[surface.index] = found
    np.testing.assert_allclose(flat.reshape(32, 32, 3), colors, atol=1e-5)
    fitted = fit(layout, surface, found * 0 + 0.5, [view], steps=300, total_variation=0.0)
    inner = view.color.reshape(-1, 3)[surface.index]
    assert np.median(np.abs(fitted - inner)) < 0.01


def test_fitting_zero_times_changes_nothing_and_draws_nothing_at_random():
    colors = np.random.default_rng(1).random((32, 32, 3)).astype(np.float32)
    layout, view = square(32, colors)
    surface = texels(layout, 32)
    start = np.full((len(surface.index), 3), 0.5, np.float32)
    assert np.array_equal(fit(layout, surface, start, [view], steps=0), start)
    before = torch.get_rng_state()
    one = fit(layout, surface, start, [view], steps=5)
    with torch.no_grad():  # as generators run
        two = fit(layout, surface, start, [view], steps=5)
    assert np.array_equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)


def test_values_spread_over_edges_and_what_is_known_stays():
    """A strip of triangles with known ends: monotone between, and the mean where nothing leads."""
    along = np.arange(7)
    faces = np.stack([along[:-2], along[1:-1], along[2:]], axis=1)
    faces = np.concatenate([faces, [[7, 8, 9]]])
    known = np.zeros(10, dtype=bool)
    known[[0, 6]] = True
    values = np.zeros((10, 1), np.float32)
    values[6] = 1
    filled = spread(values, known, faces)[:, 0]
    assert (filled[0], filled[6]) == (0, 1)
    assert (np.diff(filled[:7]) > 0).all()
    assert np.all(filled[7:] == 0.5)


def test_unseen_texels_follow_the_vertex_colours_moved_to_the_seen_ones(truth, layout):
    """Vertex colours that are 0.1 too dark everywhere: seen and unseen texels end up alike."""
    surface = texels(layout, 256)
    dark = Mesh(truth.vertices, truth.faces, truth.vertices * 0.5 + 0.4)
    corner = dark.faces[surface.triangle]
    right = (dark.vertex_colors[corner] * surface.weights[..., None]).sum(axis=1) + 0.1
    place = (truth.vertices[corner] * surface.weights[..., None]).sum(axis=1)
    seen = place[:, 2] > -0.05
    flat = Layout(dark, layout.faces, layout.uv, layout.source)
    found = complete(flat, surface, np.where(seen[:, None], right, 0).astype(np.float32), seen)
    np.testing.assert_allclose(found, right, atol=1e-3)


def test_texels_beside_charts_take_colours_from_near():
    texture = np.zeros((8, 7, 3), np.float32)
    known = np.zeros((8, 7), dtype=bool)
    texture[:, :2], known[:, :2] = [1, 0, 0], True
    texture[:, 5:], known[:, 5:] = [0, 0, 1], True
    filled = fill(texture, known)
    assert np.array_equal(filled[known], texture[known])
    assert (filled[:, 2] == [1, 0, 0]).all() or (filled[:, 2, 0] > 0.4).all()
    np.testing.assert_allclose(filled.sum(axis=2), 1, atol=1e-6)


def test_a_mesh_and_views_become_the_same_bytes_twice(truth, pictures, tmp_path):
    for name in ("one", "two"):
        made = textured(truth, pictures, faces=1000, texture_size=128, passes=1)
        made.save(tmp_path / f"{name}.glb")
    assert (tmp_path / "one.glb").read_bytes() == (tmp_path / "two.glb").read_bytes()
    assert made.texture.shape == (128, 128, 3)
    assert len(made.faces) == pytest.approx(1000, abs=4)


def test_degenerate_triangles_and_edges_of_three_faces_do_no_harm(truth, pictures):
    a, b, _ = truth.faces[0]
    faces = np.concatenate([truth.faces, [[a, b, len(truth.vertices)], [a, a, b]]])
    vertices = np.concatenate([truth.vertices, [[0.5, 0.0, 0.1]]])
    odd = Mesh(vertices, faces, checker(vertices))
    made = textured(odd, pictures, faces=None, texture_size=256, passes=0)
    assert psnr(made, painted(made), truth) > 15


@pytest.mark.parametrize("texture_size", [0, -1, 15, 100_000])
def test_an_absurd_texture_size_is_refused(truth, pictures, texture_size):
    with pytest.raises(ValueError, match=f"16 to 8192 texels, got {texture_size}"):
        textured(truth, pictures, faces=None, texture_size=texture_size)


def test_a_texture_too_small_for_the_faces_is_refused(truth, layout, pictures):
    with pytest.raises(ValueError, match="a texture of 16 x 16 is too small.*fewer faces"):
        bake(layout, pictures, 16)


def test_a_mesh_that_no_view_shows_is_refused(layout):
    camera = cameras.sphere(1)[0]
    nothing = View(camera, np.zeros((32, 32, 3)), np.zeros((32, 32)))
    for seen in ([], [nothing]):
        with pytest.raises(ValueError, match=f"none of the {len(seen)} views shows the mesh"):
            bake(layout, seen, 256)


@pytest.mark.parametrize(
    ("color", "alpha", "message"),
    [
        (np.zeros((4, 6, 3)), np.zeros((4, 6)), "a square picture"),
        (np.zeros((4, 4)), np.zeros((4, 4)), "a square picture"),
        (np.full((4, 4, 3), np.nan), np.zeros((4, 4)), "not finite"),
    ],
)
def test_pictures_that_make_no_view_are_refused(color, alpha, message):
    with pytest.raises(ValueError, match=message):
        View(cameras.sphere(1)[0], color, alpha)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, truth, pictures):
    monkeypatch.setitem(sys.modules, "xatlas", None)
    with pytest.raises(ModalignError, match=r"needs xatlas.*pip install modalign\[mesh\]"):
        textured(truth, pictures, faces=100)
