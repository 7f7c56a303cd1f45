"""Marching: closed forms of constant fields, a second look-up, and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modalign.rendering import marching
from modalign.rendering.cameras import Camera, look
from modalign.rendering.marching import march

STRAIGHT = look(0.0, 0.0, 2.0, math.radians(40))  # along -y, from +y
OBLIQUE = look(0.7, 0.4, 2.0, math.radians(40))
SH_0 = 0.28209479177387814


def constant(cells, density, rank=2, dim=4):
    """Fields of one density, red, whatever the place: factors of 1."""
    count = len(cells)
    raw = math.log(math.expm1(density))  # softplus undone
    densities = torch.zeros(count, rank).double()
    densities[:, 0] = raw
    colors = torch.zeros(count, rank, 1, 3).double()
    colors[:, 0, 0] = torch.tensor([20.0, -20.0, 0.0]) / SH_0
    return torch.tensor(cells), torch.ones(count, rank, 3, dim).double(), densities, colors


def block(resolution, low, high):
    return [
        (x, y, z)
        for x in range(low, high)
        for y in range(low, high)
        for z in range(low, high)
        if max(x, y, z) < resolution
    ]


def chord(camera, size, half):
    """How far each pixel's ray runs inside the cube -half..half, (size, size): slabs."""
    ray = camera.rays(size)
    near = (-half - camera.position) / ray
    far = (half - camera.position) / ray
    enter = np.minimum(near, far).max(axis=1)
    leave = np.maximum(near, far).min(axis=1)
    return (np.maximum(leave - enter, 0) * np.linalg.norm(ray, axis=1)).reshape(size, size)


@pytest.mark.parametrize("camera", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
def test_a_constant_field_covers_as_light_falls_off(camera):
    """alpha = 1 - exp(-density * length), whatever voxels the ray is cut by."""
    density, resolution = 3.0, 8
    picture, alpha = march(*constant(block(8, 2, 6), density), resolution, camera, 16)
    expected = 1 - np.exp(-density * chord(camera, 16, 0.25))
    assert 0.5 < expected.max() < 0.9
    np.testing.assert_allclose(alpha, expected, atol=1e-6)
    np.testing.assert_allclose(picture[..., 0], expected, atol=1e-6)
    np.testing.assert_allclose(picture[..., 1], 0, atol=1e-6)
    np.testing.assert_allclose(picture[..., 2], expected / 2, atol=1e-6)


def test_gaps_between_voxels_are_clear_and_near_voxels_hide_far_ones():
    density, resolution = 40.0, 5
    cells, trivec, densities, colors = constant([(2, 0, 2), (2, 4, 2)], density)
    colors[1, 0, 0] = torch.tensor([-20.0, 20.0, 0.0]) / SH_0  # the one nearer to +y is green
    picture, alpha = march(cells, trivec, densities, colors, resolution, STRAIGHT, 5)
    each = math.exp(-density / resolution)
    assert alpha[2, 2].item() == pytest.approx(1 - each**2, abs=1e-9)
    assert picture[2, 2, 1].item() == pytest.approx(1 - each, abs=1e-6)
    assert picture[2, 2, 0].item() == pytest.approx(each - each**2, abs=1e-6)


def test_factors_are_interpolated_between_samples():
    """A second look-up: numpy's interp within the samples, straight lines beyond the outermost."""
    draw = torch.Generator().manual_seed(0)
    rank, dim = 3, 8
    trivec = torch.randn(2, rank, 3, dim, generator=draw).double()
    mixing = torch.randn(2, rank, 4, generator=draw).double()
    places = torch.rand(50, 3, generator=draw).double()
    voxel = torch.arange(50) % 2
    rows = trivec.permute(0, 2, 3, 1).reshape(-1, rank)
    found = marching._look_up(voxel, places, dim, rows, mixing)
    at = (np.arange(dim) + 0.5) / dim
    for k in range(50):
        factors = trivec[voxel[k]].numpy()
        first, last = (factors[..., i] * 1.5 - factors[..., j] / 2 for i, j in ((0, 1), (-1, -2)))
        longer = np.concatenate([first[..., None], factors, last[..., None]], axis=-1)
        product = [
            math.prod(np.interp(places[k, axis], [0, *at, 1], longer[i, axis]) for axis in range(3))
            for i in range(rank)
        ]
        density, *color = np.array(product) @ mixing[voxel[k]].numpy()
        expected = [*(1 / (1 + np.exp(-np.array(color)))), np.log1p(np.exp(density))]
        np.testing.assert_allclose(found[k], expected, rtol=1e-9)


def test_rays_and_samples_at_once_change_nothing(monkeypatch):
    parts = constant(block(8, 1, 7), 5.0)
    parts[1].add_(torch.randn(parts[1].shape, generator=torch.Generator().manual_seed(0)))
    whole = march(*parts, 8, OBLIQUE, 20)
    monkeypatch.setattr(marching, "RAYS_AT_ONCE", 37)
    monkeypatch.setattr(marching, "SAMPLES_AT_ONCE", 11)
    for ours, theirs in zip(march(*parts, 8, OBLIQUE, 20), whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_a_camera_inside_sees_what_is_ahead():
    inside = Camera(STRAIGHT.extrinsics.copy(), STRAIGHT.intrinsics)
    inside.extrinsics[2, 3] = 0.0
    _, alpha = march(*constant(block(8, 0, 8), 2.0), 8, inside, 5)
    assert alpha[2, 2].item() == pytest.approx(1 - math.exp(-2.0 * 0.5), abs=1e-6)


def test_no_voxels_are_black_and_clear():
    parts = constant([(1, 1, 1)], 1.0)
    picture, alpha = march(*(part[:0] for part in parts), 4, OBLIQUE, 6)
    assert picture.shape == (6, 6, 3)
    assert not picture.any()
    assert not alpha.any()


def test_gradients_are_those_of_finite_differences():
    cells, *fields = constant([(1, 1, 1), (2, 1, 1)], 4.0, rank=2, dim=2)
    draw = torch.Generator().manual_seed(0)
    fields = [f + 0.3 * torch.randn(f.shape, generator=draw).double() for f in fields]
    fields[2] = fields[2] * 0.05
    for field in fields:
        field.requires_grad_()
    assert torch.autograd.gradcheck(lambda *f: march(cells, *f, 4, OBLIQUE, 3), fields, eps=1e-6)
