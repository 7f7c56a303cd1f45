"""What a camera sees of a mesh, layer by layer: light, colour, normals, depth, cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modalign.rendering.cameras import Camera
from modalign.rendering.rasteriser import Intersect

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Paint = Callable[[Any, Any], Any]
"""paint(corners, weights): colours (K, 3) in 0..1 at K points, by their triangles' vertices (K, 3)
and the shares (K, 3, 1) of these."""

AMBIENT, DIFFUSE = 0.45, 0.55  # soft light from behind the camera and above


@dataclass(frozen=True, eq=False)
class Layers:
    """Pictures of a mesh; 0 where it is not.

    Attributes:
        color: (S, S, 3) as displayed, softly lit; a face seen from behind as from before.
        albedo: (S, S, 3) the surface's own colour.
        normal: (S, S, 3) unit normals of the faces, in the world.
        depth: (S, S) along the camera's axis, in the world's unit.
        mask: (S, S) 1 where the mesh is; between 0 and 1 at its edge after `reduced`.
    """

    color: Floats
    albedo: Floats
    normal: Floats
    depth: Floats
    mask: Floats

    def reduced(self, times: int) -> Layers:
        """Pictures of a `times`-th of the size, each pixel a mean over those that it replaces."""

        def mean(fine: Floats) -> Floats:
            size = len(fine) // times
            blocks: Floats = fine.reshape(size, times, size, times, *fine.shape[2:])
            found: Floats = blocks.mean(axis=(1, 3))
            return found

        return Layers(**{name: mean(fine) for name, fine in vars(self).items()})


def mesh_layers(
    vertices: NDArray[np.float32],
    faces: NDArray[np.int64],
    paint: Paint,
    normals: NDArray[np.float32],
    intersect: Intersect,
    camera: Camera,
    size: int,
) -> Layers:
    """All layers of a mesh, one ray through each pixel's centre.

    Not differentiable: which triangle a pixel sees is found by `intersect`. Given that and its
    weights, every layer is a plain function of the vertices' attributes.

    Args:
        vertices: (V, 3).
        faces: (F, 3).
        paint: the surface's colours, as displayed.
        normals: (V, 3) unit vectors, for the light.
        intersect: of the same mesh, see `rasteriser.intersector`.
        camera: where from.
        size: pixels on a side.
    """
    triangle, weights = intersect(camera, size)
    hit = triangle >= 0
    corners = faces[triangle[hit]]  # (hits, 3)
    weights = weights[hit][..., None]
    albedo = paint(corners, weights)
    a, b, c = np.moveaxis(vertices[corners].astype(np.float64), 1, 0)
    flat = np.cross(b - a, c - a)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-30)
    place = (vertices[corners] * weights).sum(axis=1)
    # A sheet has two sides, and many files wind some faces the wrong way round.
    behind = (flat * (place - camera.position)).sum(axis=1, keepdims=True) > 0
    smooth = (normals[corners] * weights).sum(axis=1)
    shade = lit(np.where(behind, -smooth, smooth), camera)
    depth = place @ camera.extrinsics[2, :3] + camera.extrinsics[2, 3]

    def picture(values: Floats) -> Floats:
        full = np.zeros((size * size, *values.shape[1:]))
        full[hit] = values
        return full.reshape(size, size, *values.shape[1:])

    return Layers(
        color=picture(albedo * shade[:, None]),
        albedo=picture(albedo),
        normal=picture(flat),
        depth=picture(depth),
        mask=picture(np.ones(len(depth))),
    )


def lit(normals: Floats, camera: Camera) -> Floats:
    """Brightness (K,) in 0..1 of surfaces with normals (K, 3), of any length, under soft light."""
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    light = np.array([0.0, 0.0, 0.6]) - camera.extrinsics[2, :3]  # towards the camera, and up
    light /= np.linalg.norm(light)
    shade: Floats = AMBIENT + DIFFUSE * (normals @ light).clip(0, 1)
    return shade
