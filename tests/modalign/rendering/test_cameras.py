"""Cameras: where they stand, against the words of the facts and the golden entry `cameras`."""

from __future__ import annotations

import numpy as np
import pytest

from modalign.rendering import cameras
from modalign.rendering.cameras import around, evaluation, look, orbit, sphere

RIGS = {
    "around": (around(4), 10.0),
    "evaluation": (evaluation(20), 2.0),
    "orbit": (orbit(12), 2.0),
    "sphere": (sphere(30), 2.0),
}


@pytest.mark.parametrize("name", RIGS)
def test_every_camera_looks_at_the_origin_upright_from_its_radius(name):
    rig, radius = RIGS[name]
    for camera in rig:
        assert np.linalg.norm(camera.position) == pytest.approx(radius)
        np.testing.assert_allclose(camera.extrinsics[:3, 3], [0, 0, radius], atol=1e-9)
        assert camera.extrinsics[1, 2] <= 1e-12  # the world's z never points down


@pytest.mark.parametrize(("views", "yaws"), [(4, [0, 90, 180, 270]), (8, range(0, 360, 45))])
def test_metrics_look_from_even_yaws_30_degrees_up(views, yaws):
    for camera, yaw in zip(evaluation(views), yaws, strict=True):
        expected = look(np.radians(yaw), np.radians(30), 2.0, np.radians(40))
        np.testing.assert_allclose(camera.extrinsics, expected.extrinsics, atol=1e-12)
        np.testing.assert_allclose(camera.intrinsics, expected.intrinsics)


def test_an_orbit_rises_sinks_and_repeats_without_a_seam():
    heights = [camera.position[2] / 2 for camera in orbit(8)]
    turns = np.arange(8) * np.pi / 4
    np.testing.assert_allclose(heights, np.sin(0.25 + 0.5 * np.sin(turns)), atol=1e-12)
    steps = [np.linalg.norm(orbit(64)[k].position - orbit(64)[k - 1].position) for k in range(64)]
    assert max(steps) < 2 * 2 * np.pi * 2 / 64  # the step from the last to the first is as small


def test_directions_of_a_sphere_are_even():
    """Their mean nearly vanishes and their second moment is nearly a third of the unit matrix."""
    places = np.stack([camera.position for camera in sphere(100)]) / 2
    assert np.linalg.norm(places.mean(axis=0)) < 0.02
    np.testing.assert_allclose(places.T @ places / 100, np.eye(3) / 3, atol=0.02)


def test_the_whole_cube_is_seen_from_the_whole_radius():
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    for camera in orbit(24, radius=cameras.WHOLE_RADIUS):
        seen = corners @ camera.extrinsics[:3, :3].T + camera.extrinsics[:3, 3]
        place = seen @ camera.intrinsics.T
        place = place[:, :2] / place[:, 2:]
        assert ((place >= 0) & (place <= 1)).all()
