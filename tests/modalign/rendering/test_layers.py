"""Layers of a mesh: a square plate whose every layer algebra knows."""

from __future__ import annotations

import numpy as np
import pytest

from modalign import Mesh
from modalign.rendering.cameras import look

# A plate at y = 0.1 that faces +y, with a colour that grows along x.
CORNERS = np.array([[-0.3, 0.1, -0.3], [0.3, 0.1, -0.3], [0.3, 0.1, 0.3], [-0.3, 0.1, 0.3]])
PLATE = Mesh(CORNERS, np.array([[0, 2, 1], [0, 3, 2]]), (CORNERS + 0.5) * [1, 0, 0])
FRONT = look(0.0, 0.0, 2.0, np.radians(40))


def test_depth_is_along_the_axis_and_normals_are_of_the_world():
    layers = PLATE.layers(FRONT, 32)
    inside = layers.mask == 1
    assert 0.1 < inside.mean() < 0.5
    np.testing.assert_allclose(layers.depth[inside], 1.9, atol=1e-6)
    np.testing.assert_allclose(layers.normal[inside], [[0, 1, 0]] * inside.sum(), atol=1e-7)
    outside = layers.mask == 0
    assert not layers.depth[outside].any()
    assert not layers.normal[outside].any()


def test_the_mask_measures_the_plate():
    """Its side is 0.6 f / 1.9 of the picture's, 28 pixels; edges are right to a quarter."""
    f = 0.5 / np.tan(np.radians(20))
    side = 0.6 * f / 1.9
    assert PLATE.layers(FRONT, 64).mask.mean() == pytest.approx(side**2, rel=0.02)


def test_albedo_is_the_colour_at_the_place_that_a_ray_hits():
    layers = PLATE.layers(FRONT, 32, supersampling=1)
    ray = FRONT.rays(32).reshape(32, 32, 3)
    hit = FRONT.position + ray * layers.depth[..., None]  # rays have depth 1
    inside = layers.mask == 1
    np.testing.assert_allclose(layers.albedo[inside][:, 0], hit[inside][:, 0] + 0.5, atol=1e-6)
    assert (layers.color <= layers.albedo + 1e-12).all()


def test_modes_show_the_layers():
    middle = (0, 16, 16)
    kwargs = {"cameras": [FRONT], "size": 33, "background": (0.0, 0.0, 1.0)}
    shown = {mode: PLATE.render(mode=mode, **kwargs) for mode in ("normal", "depth", "mask")}
    assert shown["normal"][middle].tolist() == [128, 255, 128]
    depth = round(255 * (-0.1 / np.sqrt(3) + 0.5))
    assert shown["depth"][middle].tolist() == [depth] * 3
    assert shown["mask"][middle].tolist() == [255] * 3
    assert [int(picture[0, 0, 0, 2]) for picture in shown.values()] == [255, 255, 0]


def test_an_unknown_mode_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown mode 'x'; known: color, albedo, normal, depth"):
        PLATE.render(mode="x")


def test_a_sheet_is_lit_from_both_sides():
    """Seen level from the front and from behind, the light comes from the camera and above."""
    behind = look(np.pi, 0.0, 2.0, np.radians(40))
    front, back = (PLATE.layers(camera, 33, supersampling=1) for camera in (FRONT, behind))
    for layers in (front, back):
        inside = layers.mask == 1
        shade = layers.color[inside][:, 0] / layers.albedo[inside][:, 0]
        np.testing.assert_allclose(shade, 0.45 + 0.55 / np.sqrt(1 + 0.6**2), atol=1e-6)


def test_a_cutout_is_the_picture_over_nothing():
    """Over white it is what `render` draws on white, to the rounding of eight bits, twice."""
    (cut,) = PLATE.cutouts([FRONT], 48)
    alpha = cut[..., 3:] / 255
    assert set(np.unique(cut[..., 3])) > {0, 255}
    over = cut[..., :3] * alpha + 255 * (1 - alpha)
    expected = PLATE.render(cameras=[FRONT], size=48)[0]
    np.testing.assert_allclose(over, expected, atol=1.6)
    assert not cut[cut[..., 3] == 0].any()
