"""How long a texture takes: 50,000 faces, 1,024 texels a side, 100 views of 512 pixels.

`pytest benchmarks/test_meshing.py -m slow`: a few minutes. Views are flat pictures, which take as
long as others; `unwrap` beside `blend` and `fit` shows what to wait for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trimesh

from modalign import Mesh
from modalign.meshing import View, unwrap
from modalign.meshing.baking import blend
from modalign.meshing.fitting import fit
from modalign.meshing.layout import Layout, texels
from modalign.rendering import cameras

pytestmark = pytest.mark.slow
TEXTURE, PICTURE, LOOKS = 1024, 512, 100


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    shape = trimesh.creation.torus(0.35, 0.13, major_sections=200, minor_sections=125)
    return Mesh(shape.vertices, shape.faces, np.full((len(shape.vertices), 3), 0.5))


@pytest.fixture(scope="module")
def layout(mesh: Mesh) -> Layout:
    return unwrap(mesh, TEXTURE)


@pytest.fixture(scope="module")
def views() -> list[View]:
    color, alpha = np.full((PICTURE, PICTURE, 3), 0.5), np.ones((PICTURE, PICTURE))
    return [View(camera, color, alpha) for camera in cameras.sphere(LOOKS)]


@pytest.mark.benchmark(group="texture of 50,000 faces")
@pytest.mark.parametrize("step", ["unwrap", "blend", "fit once"])
def test_steps_of_a_texture(
    benchmark: Any, mesh: Mesh, layout: Layout, views: list[View], step: str
) -> None:
    surface = texels(layout, TEXTURE)
    start = np.zeros((len(surface.index), 3), np.float32)
    work = {
        "unwrap": lambda: unwrap(mesh, TEXTURE),
        "blend": lambda: blend(layout, surface, views),
        "fit once": lambda: fit(layout, surface, start, views, steps=LOOKS),
    }[step]
    benchmark.pedantic(work, rounds=1)
