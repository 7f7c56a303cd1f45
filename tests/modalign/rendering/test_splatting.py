"""Splatting: against a second implementation, finite differences and what algebra says.

The reference's picture is `trellis.gaussian_render` of `tests/golden`.
"""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modalign.rendering import splatting
from modalign.rendering.cameras import look, orbit
from modalign.rendering.splatting import splat
from tests.modalign.rendering.plain import plain_splat

CAMERA = look(0.3, 0.4, 2.0, math.radians(40))


def scene(count, seed=0, scale=0.03, dtype=torch.float64):
    """Splats of all shapes in and around the cube, some before and behind the camera."""
    draw = torch.Generator().manual_seed(seed)
    xyz = torch.randn(count, 3, generator=draw) * 0.3
    xyz[: count // 20] *= 8
    turns = torch.linalg.qr(torch.randn(count, 3, 3, generator=draw)).Q
    axes = turns * (torch.randn(count, 1, 3, generator=draw).exp() * scale)
    opacity = torch.rand(count, generator=draw)
    color = torch.rand(count, 3, generator=draw) * 1.5
    return [part.to(dtype) for part in (xyz, axes, opacity, color)]


def plain(parts, size):
    xyz, axes, opacity, color = parts
    return plain_splat(xyz, axes @ axes.transpose(1, 2), opacity, color, CAMERA, size)


@pytest.mark.parametrize(("count", "size", "scale"), [(150, 50, 0.03), (60, 33, 0.3), (300, 16, 1)])
def test_every_splat_at_every_pixel_gives_the_same(count, size, scale):
    """A second implementation, in float64; sizes that blocks do not divide, splats of all sizes."""
    parts = scene(count, scale=scale)
    for ours, theirs in zip(splat(*parts, CAMERA, size), plain(parts, size), strict=True):
        assert theirs.max() > 0.5
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_float32_is_near_float64():
    fine = splat(*scene(400), CAMERA, 48)
    coarse = splat(*scene(400, dtype=torch.float32), CAMERA, 48)
    for wide, narrow in zip(fine, coarse, strict=True):
        torch.testing.assert_close(narrow.double(), wide, atol=2e-4, rtol=0)


def test_rounds_and_chunks_change_nothing(monkeypatch):
    parts = scene(300)
    whole = splat(*parts, CAMERA, 40)
    for width, budget in ((1, 1), (7, 1 << 12), (1000, 1 << 30)):
        monkeypatch.setattr(splatting, "ROUND", width)
        monkeypatch.setitem(splatting.BUDGET, "cpu", budget)
        for ours, theirs in zip(splat(*parts, CAMERA, 40), whole, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_the_order_of_splats_changes_nothing():
    parts = scene(200)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    mixed = splat(*(part[order] for part in parts), CAMERA, 40)
    assert all(map(torch.equal, mixed, splat(*parts, CAMERA, 40)))


def test_one_round_splat_is_what_the_formula_says():
    """A ball of deviation s at the origin, seen from r: s size f / r pixels wide, filtered."""
    s, size, f = 0.02, 33, 0.5 / math.tan(math.radians(20))
    xyz, axes = torch.zeros(1, 3).double(), (s * torch.eye(3).double())[None]
    _, alpha = splat(xyz, axes, torch.tensor([0.8], dtype=torch.float64), xyz + 1, CAMERA, size)
    flat = (s * size * f / 2.0) ** 2
    wide = flat + 0.1
    peak = 0.8 * math.sqrt(flat**2 / (wide**2 + 1e-6) + 1e-6)
    middle = size // 2  # the pixel whose centre is on the axis
    assert alpha[middle, middle].item() == pytest.approx(peak, rel=1e-9)
    beside = alpha[middle, middle + 1].item()
    assert beside == pytest.approx(peak * math.exp(-0.5 / wide), rel=1e-9)


def test_nothing_to_see_is_black_and_clear():
    for parts in (scene(0), [part[:3] * (-9 if k == 0 else 1) for k, part in enumerate(scene(3))]):
        parts[0] = parts[0] * 0 + torch.from_numpy(CAMERA.position) * 2  # behind the camera
        picture, alpha = splat(*parts, CAMERA, 20)
        assert picture.shape == (20, 20, 3)
        assert not picture.any()
        assert not alpha.any()


def test_gradients_are_those_of_finite_differences():
    """In float64; splats faint enough that no threshold is crossed on the way."""
    xyz, axes, opacity, color = scene(4, scale=0.2)
    xyz = xyz * 0.3
    axes = axes + 0.05 * torch.eye(3)
    parts = [part.requires_grad_() for part in (xyz, axes, 0.3 + 0.4 * opacity, color)]
    middle = slice(7, 10)

    def seen(*parts):
        picture, alpha = splat(*parts, CAMERA, 16)
        return picture[middle, middle], alpha[middle, middle]

    assert torch.autograd.gradcheck(seen, parts, eps=1e-7, atol=1e-5, nondet_tol=0)


def test_a_gradient_does_not_change_the_picture():
    parts = scene(100, dtype=torch.float32)
    still = splat(*parts, CAMERA, 32)
    moved = splat(*(part.clone().requires_grad_() for part in parts), CAMERA, 32)
    assert all(map(torch.equal, still, moved))
    assert moved[0].requires_grad


def test_splats_are_fitted_to_a_picture():
    """Eight splats learn two views of eight others: the squared error falls a hundredfold."""
    cameras = orbit(4)[:2]
    xyz, axes, opacity, color = scene(8, seed=3, scale=0.1, dtype=torch.float32)
    xyz, opacity = xyz.clamp(-0.3, 0.3), 0.5 + opacity / 3
    wanted = [splat(xyz, axes, opacity, color, camera, 24)[0] for camera in cameras]
    draw = torch.Generator().manual_seed(0)
    start = [
        xyz + 0.03 * torch.randn(xyz.shape, generator=draw),
        axes,
        torch.logit(opacity * 0 + 0.5),
        color * 0 + 0.5,
    ]
    parts = [part.clone().requires_grad_() for part in start]
    rates = (0.005, 0.005, 0.1, 0.05)
    adam = torch.optim.Adam([{"params": [p], "lr": r} for p, r in zip(parts, rates, strict=True)])
    losses = []
    for _ in range(80):
        seen = [splat(*parts[:2], parts[2].sigmoid(), parts[3], c, 24)[0] for c in cameras]
        loss = sum((a - b).square().mean() for a, b in zip(seen, wanted, strict=True))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100


def test_gsplat_gets_the_same_camera_and_filter(monkeypatch):
    """What reaches the kernels; the kernels need a CUDA device and are not run here."""
    got = {}

    def rasterization(**arguments):
        got.update(arguments)
        return torch.ones(1, 8, 8, 3), torch.ones(1, 8, 8, 1), {}

    monkeypatch.setitem(sys.modules, "gsplat", SimpleNamespace(rasterization=rasterization))
    parts = scene(5, dtype=torch.float32)
    picture, alpha = splatting._gsplat(*parts, CAMERA, 8)
    assert picture.shape == (8, 8, 3)
    assert alpha.shape == (8, 8)
    np.testing.assert_allclose(got["viewmats"][0], CAMERA.extrinsics, rtol=1e-6)
    # Pixel i has its centre at i + 1/2 there, at i here: (n + 1) size / 2 is one half more.
    np.testing.assert_allclose(got["Ks"][0, :2], CAMERA.intrinsics[:2] * 8, rtol=1e-6)
    assert got["Ks"][0, 2].tolist() == [0, 0, 1]
    assert (got["eps2d"], got["near_plane"], got["rasterize_mode"]) == (0.1, 0.2, "antialiased")
    torch.testing.assert_close(got["covars"], parts[1] @ parts[1].mT)


@pytest.mark.gpu
def test_a_cuda_device_shows_the_same():
    parts = scene(400, dtype=torch.float32)
    near = splat(*parts, CAMERA, 64)
    far = splat(*(part.cuda() for part in parts), CAMERA, 64)
    for here, there in zip(near, far, strict=True):
        torch.testing.assert_close(there.cpu(), here, atol=5e-3, rtol=0)
