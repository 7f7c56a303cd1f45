"""Textures out of pictures: each texel takes the colours of the views that see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from modalign.meshing.layout import Layout, Texels
from modalign.meshing.spreading import spread
from modalign.meshing.views import View, sight
from modalign.rendering.rasteriser import intersector

if TYPE_CHECKING:
    from numpy.typing import NDArray

GRAZING = 0.1  # cosine below which a view sees a face too flat to count
FACING = 4  # power of the cosine in a view's weight
CHUNK = 1 << 18  # texels at a time, which bounds memory


def blend(
    layout: Layout, texels: Texels, views: Sequence[View]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean colours (N, 3) of the views that see each texel, and the weights (N,), 0 where none.

    A view counts by the pixels that it has for the surface there, and by how straight it looks.
    A picture is read bilinearly, from those of the four pixels that show the texel's depth.
    """
    mesh = layout.mesh
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    intersect = intersector(mesh.vertices, mesh.faces)
    total, weight = np.zeros((len(texels.index), 3)), np.zeros(len(texels.index))
    position = (corners[texels.triangle] * texels.weights[..., None]).sum(axis=1)
    for view in views:
        shown = sight(view, mesh, intersect)
        camera, side = view.camera, view.size
        scale = camera.intrinsics[0, 0] * side
        # Front faces alone; the sign of the distance from the camera to the face's plane.
        front = ((camera.position - corners[:, 0]) * normals).sum(axis=1) > 0
        candidates = np.nonzero(front[texels.triangle])[0]
        for start in range(0, len(candidates), CHUNK):
            rows = candidates[start : start + CHUNK]
            to = camera.position - position[rows]
            cosine = (to * normals[texels.triangle[rows]]).sum(axis=1)
            cosine /= np.linalg.norm(to, axis=1)
            seen = position[rows] @ camera.extrinsics[:3, :3].T + camera.extrinsics[:3, 3]
            depth = seen[:, 2]
            rows, seen, depth, cosine = (
                array[(cosine > GRAZING) & (depth > 0)] for array in (rows, seen, depth, cosine)
            )
            pixel = (seen @ camera.intrinsics.T)[:, :2] / depth[:, None] * side - 0.5
            # Within a pixel the surface's own slope moves its depth by this much at most.
            slack = depth / scale * (1 + 1.5 * np.sqrt(1 - cosine.clip(0, 1) ** 2) / cosine)
            low = np.floor(pixel).astype(np.int64)
            share = pixel - low
            color, visible = np.zeros((len(rows), 3)), np.zeros(len(rows))
            for right in (0, 1):
                for down in (0, 1):
                    x, y = low[:, 0] + right, low[:, 1] + down
                    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
                    at = np.where(inside, y * side + x, 0)
                    tap = np.abs(1 - right - share[:, 0]) * np.abs(1 - down - share[:, 1])
                    tap *= inside & (np.abs(shown.depth[at] - depth) < slack)
                    tap *= shown.trust[at]
                    color += tap[:, None] * shown.color[at]
                    visible += tap
            trust = cosine**FACING * (scale / depth) ** 2
            total[rows] += trust[:, None] * color
            weight[rows] += trust * visible
    mean = total / np.maximum(weight, 1e-30)[:, None]
    return mean.astype(np.float32), weight.astype(np.float32)


def complete(
    layout: Layout, texels: Texels, color: NDArray[np.float32], seen: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Colours (N, 3) of all texels from those `seen` (N,).

    What nobody saw takes the mesh's own vertex colour, moved by what the texture differs from the
    vertex colours around: the difference spreads over the surface, across seams.
    """
    if seen.all():
        return color
    mesh = layout.mesh
    corner = mesh.faces[texels.triangle]
    own = (mesh.vertex_colors[corner] * texels.weights[..., None]).sum(axis=1)
    share = np.where(seen[:, None], texels.weights.clip(0, None), 0).ravel()
    count = np.bincount(corner.ravel(), share, len(mesh.vertices))
    difference = np.repeat(color - own, 3, axis=0) * share[:, None]
    sums = [np.bincount(corner.ravel(), channel, len(mesh.vertices)) for channel in difference.T]
    mean = np.stack(sums, axis=1) / np.maximum(count, 1e-12)[:, None]
    moved = spread(mean.astype(np.float32), count > 1e-6, mesh.faces)
    guess = own + (moved[corner] * texels.weights[..., None]).sum(axis=1)
    return np.where(seen[:, None], color, guess.clip(0, 1)).astype(np.float32)


def fill(texture: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A texture (H, W, 3) with means of known texels (H, W) near in place of unknown ones.

    Scale by scale: neither filtering nor mip maps mix foreign colour in at seams.
    """
    if known.all() or not known.any():
        return texture
    height, width = known.shape
    even = ((0, height % 2), (0, width % 2))
    weights = np.pad(known, even).astype(np.float32)
    sums = np.pad(np.where(known[..., None], texture, 0), (*even, (0, 0)))

    def halved(array: NDArray[np.float32]) -> NDArray[np.float32]:
        return array[::2, ::2] + array[1::2, ::2] + array[::2, 1::2] + array[1::2, 1::2]

    count = halved(weights)
    mean = halved(sums) / np.maximum(count, 1)[..., None]
    coarse = fill(mean.astype(np.float32), count > 0)
    fine = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.where(known[..., None], texture, fine).astype(np.float32)
