"""Where on a texture each face of a mesh lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modalign.assets import Mesh
from modalign.meshing.libraries import library
from modalign.meshing.repair import areas
from modalign.rendering.cameras import Camera
from modalign.rendering.rasteriser import intersector

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEXTURE_SIZES = (16, 8192)
PADDING = 4  # texels between charts, so that bilinear filtering and two mip levels stay apart


@dataclass(frozen=True, eq=False)
class Layout:
    """A mesh cut open and laid flat.

    Attributes:
        mesh: as it was.
        faces: (F, 3) int64, the same faces in the same order, naming corners.
        uv: (C, 2) float32 in 0..1 for each corner, from the top left of the texture.
        source: (C,) int64, the vertex of the mesh that each corner is; on a seam one is several.
    """

    mesh: Mesh
    faces: NDArray[np.int64]
    uv: NDArray[np.float32]
    source: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Texels:
    """The texels that lie on a mesh, and one ring around them for bilinear filtering.

    Attributes:
        index: (N,) int64, row * size + column.
        triangle: (N,) int64, the face.
        weights: (N, 3), shares of its corners; one is negative in the ring outside.
        size: texels along a side of the texture.
    """

    index: NDArray[np.int64]
    triangle: NDArray[np.int64]
    weights: NDArray[np.float64]
    size: int


def unwrap(mesh: Mesh, texture_size: int = 1024) -> Layout:
    """Charts of low distortion, packed into a square (xatlas).

    Raises:
        ModalignError: xatlas is not installed.
        ValueError: the mesh has no faces, or `texture_size` is not 16 to 8192.
    """
    check_texture_size(texture_size)
    if len(mesh.faces) == 0:
        raise ValueError("the mesh has no faces")
    module = library("xatlas", "laying a mesh flat")
    atlas = module.Atlas()
    atlas.add_mesh(mesh.vertices, mesh.faces.astype(np.uint32))
    packing = module.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = texture_size, PADDING, True
    atlas.generate(module.ChartOptions(), packing)
    source, faces, uv = atlas.get_mesh(0)
    # The resolution is only met about: what came out is scaled as a whole, angles stay.
    pixels = uv * np.array([atlas.width, atlas.height], dtype=np.float32)
    uv = (pixels / max(atlas.width, atlas.height)).clip(0, 1)
    return Layout(mesh, faces.astype(np.int64), uv, source.astype(np.int64))


def check_texture_size(texture_size: int) -> None:
    """Refuse textures that nobody can want.

    Raises:
        ValueError: the size is not 16 to 8192.
    """
    low, high = TEXTURE_SIZES
    if not low <= texture_size <= high:
        raise ValueError(f"texture_size must be {low} to {high} texels, got {texture_size}")


def texels(layout: Layout, size: int) -> Texels:
    """The texels whose centre a face covers, and their neighbours, on a texture (size, size).

    Raises:
        ValueError: more than half of the surface has no texel.
    """
    flat = np.concatenate([layout.uv, np.ones((len(layout.uv), 1), np.float32)], axis=1)
    # A pinhole at the origin sees the plane at depth 1 as the texture is.
    triangle, weights = intersector(flat, layout.faces)(Camera(np.eye(4), np.eye(3)), size)
    area = areas(layout.mesh)
    drawn = np.zeros(len(area), dtype=bool)
    drawn[triangle[triangle >= 0]] = True
    if area[drawn].sum() < 0.5 * area.sum():
        raise ValueError(
            f"a texture of {size} x {size} is too small: {area[~drawn].sum() / area.sum():.0%} of "
            f"the surface of {len(area)} faces gets no texel; "
            "use a larger texture_size or fewer faces"
        )
    grid = triangle.reshape(size, size)
    padded = np.pad(grid, 1, constant_values=-1)
    ring = grid.copy()
    for row, column in ((0, 1), (2, 1), (1, 0), (1, 2), (0, 0), (0, 2), (2, 0), (2, 2)):
        neighbour = padded[row : row + size, column : column + size]
        ring = np.where((ring < 0) & (neighbour >= 0), neighbour, ring)
    outside = np.nonzero((grid < 0) & (ring >= 0))
    at = np.stack([outside[1] + 0.5, outside[0] + 0.5], axis=1) / size
    owner = ring[outside]
    shares = _shares(layout.uv[layout.faces[owner]].astype(np.float64), at)
    sound = np.isfinite(shares).all(axis=1) & (np.abs(shares).max(axis=1) < 10)  # no slivers
    inner = np.nonzero(triangle >= 0)[0]
    index = np.concatenate([inner, (outside[0] * size + outside[1])[sound]])
    return Texels(
        index,
        np.concatenate([triangle[inner], owner[sound]]),
        np.concatenate([weights[inner], shares[sound]]),
        size,
    )


def _shares(corner: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Barycentric shares (N, 3) of points (N, 2) in triangles (N, 3, 2)."""
    a, b, c = np.moveaxis(corner, 1, 0)

    def cross(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
        product: NDArray[np.float64] = p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]
        return product

    total = cross(b - a, c - a)
    total = np.where(total == 0, np.nan, total)
    second, third = cross(at - a, c - a) / total, cross(b - a, at - a) / total
    return np.stack([1 - second - third, second, third], axis=1)
