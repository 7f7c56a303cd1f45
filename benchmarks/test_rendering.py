"""How fast splats become pictures: tiles against every splat at every pixel, and at full size."""

import math

import pytest
import torch

from modalign.rendering.cameras import evaluation, look
from modalign.rendering.splatting import splat
from tests.modalign.rendering.plain import plain_splat

RELEASED = 640_000  # splats of a TRELLIS asset with 20,000 voxels


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shell(count, scale):
    """Splats on a sphere, of the sizes and opacities that a decoder gives."""
    draw = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize(torch.randn(count, 3, generator=draw), dim=1)
    xyz = 0.4 * normal + 0.003 * torch.randn(count, 3, generator=draw)
    size = (0.3 * torch.randn(count, 1, 3, generator=draw)).exp() * scale
    axes = torch.eye(3) * size
    opacity = 0.05 + 0.8 * torch.rand(count, generator=draw)
    return xyz, axes, opacity, normal.abs()


@pytest.mark.parametrize("how", ["tiles", "every splat at every pixel"])
def test_a_small_scene(benchmark, how):
    """500 splats, 64 px, one core; the two pictures are equal (tests)."""
    camera = look(0.3, 0.4, 2.0, math.radians(40))
    xyz, axes, opacity, color = shell(500, 0.02)
    if how == "tiles":
        benchmark(splat, xyz, axes, opacity, color, camera, 64)
    else:
        covariance = axes @ axes.transpose(1, 2)
        benchmark.pedantic(plain_splat, (xyz, covariance, opacity, color, camera, 64), rounds=3)


@pytest.mark.parametrize("gradient", [False, True], ids=["picture", "picture and gradient"])
def test_a_released_asset(benchmark, gradient):
    """640,000 splats, 512 px, one core."""
    camera = evaluation(4)[0]
    parts = shell(RELEASED, 0.004)
    if gradient:
        parts = tuple(part.requires_grad_() for part in parts)

    def run():
        picture, alpha = splat(*parts, camera, 512)
        if gradient:
            (picture.sum() + alpha.sum()).backward()

    benchmark.pedantic(run, rounds=2, warmup_rounds=1)
    benchmark.extra_info["splats per second"] = RELEASED / benchmark.stats["mean"]
