"""All steps from a mesh and pictures of it to a textured mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from modalign.assets import Mesh, TexturedMesh
from modalign.meshing.baking import blend, complete, fill
from modalign.meshing.fitting import fit
from modalign.meshing.layout import Layout, check_texture_size, texels, unwrap
from modalign.meshing.libraries import require
from modalign.meshing.repair import (
    HOLE_EDGES,
    clean,
    fill_holes,
    remove_hidden,
    simplify,
)
from modalign.meshing.views import View

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Times each view is fitted. A checkered torus of 5,000 faces, 60 views of 256 pixels, 512 texels a
# side: on 16 views that nobody baked from, vertex colours 15.3 dB, blending 26.8, then two passes
# 28.1 and four 28.5; the true colours at the texels' centres have 26.7.
PASSES = 4


def textured(
    mesh: Mesh,
    views: Sequence[View],
    *,
    faces: int | None,
    texture_size: int = 1024,
    hole_edges: int = HOLE_EDGES,
    passes: int = PASSES,
) -> TexturedMesh:
    """The mesh simplified to about `faces` faces (None: all), repaired, and painted by the views.

    In this order: degenerate triangles go, faces are simplified, faces that nobody sees from
    outside go, holes of up to `hole_edges` edges are closed (0: none), the surface is laid flat on
    `texture_size` squared texels, and `bake` paints it. The mesh lies around the origin, as the
    cameras of the views assume. The colours are those of the views: light and shadow in them stay.

    Raises:
        ModalignError: a library of the extra `mesh` is not installed.
        ValueError: the mesh has no faces or no area, no view sees it, or a number is out of range.
    """
    check_texture_size(texture_size)
    require("a texture")
    mesh = clean(mesh)
    if faces is not None:
        mesh = simplify(mesh, faces=faces)
    mesh = remove_hidden(mesh)
    if hole_edges:
        mesh = clean(fill_holes(mesh, max_edges=hole_edges))
    layout = unwrap(mesh, texture_size)
    return TexturedMesh(
        mesh.vertices[layout.source],
        layout.faces,
        layout.uv,
        bake(layout, views, texture_size, passes=passes),
        mesh.vertex_normals[layout.source],
    )


def bake(
    layout: Layout, views: Sequence[View], texture_size: int = 1024, *, passes: int = PASSES
) -> NDArray[np.uint8]:
    """A texture (texture_size, texture_size, 3) that paints a mesh as the views show it.

    Views are blended, then the texture is fitted to them `passes` times each (0: not at all).
    What none of them sees follows the mesh's vertex colours, and texels beside the charts their
    neighbours. All values are as displayed (sRGB).

    Raises:
        ValueError: no view sees the mesh, the texture is too small for its faces, or `passes` is
            negative.
    """
    check_texture_size(texture_size)
    if passes < 0:
        raise ValueError(f"passes counts fits of each view, got {passes}")
    surface = texels(layout, texture_size)
    color, weight = blend(layout, surface, views)
    if not weight.any():
        raise ValueError(
            f"none of the {len(views)} views shows the mesh; check cameras, alpha, and that mesh "
            "and pictures are of the same object in the same place"
        )
    color = complete(layout, surface, color, weight > 0)
    color = fit(layout, surface, color, views, steps=passes * len(views))
    texture = np.zeros((texture_size**2, 3), dtype=np.float32)
    known = np.zeros(texture_size**2, dtype=bool)
    texture[surface.index], known[surface.index] = color, True
    side = (texture_size, texture_size)
    painted = fill(texture.reshape(*side, 3), known.reshape(side))
    rounded: NDArray[np.uint8] = np.rint(painted.clip(0, 1) * 255).astype(np.uint8)
    return rounded
