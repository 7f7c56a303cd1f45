"""Ground truth on the mesh grid, for the SLAT VAE: distances and colours at every grid vertex.

The grid is that of FlexiCubes at four times the structure's resolution; only vertices of active
voxels are kept, in the order `grid_attributes` has them (sorted by x, y, z).
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache as once

import numpy as np
import torch
from cache import FOLDER, WORLD, surface
from configs import STRUCTURE
from modalign_plugins.datasets.toybox import COLORS, PALETTE, ToyObject
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

SCALE = 4
CELLS = STRUCTURE * SCALE  # of the mesh grid
SIDE = CELLS + 1
OBJECTS = 4000
COLOR_TABLE = torch.tensor(np.stack([PALETTE[name] for name in COLORS]), dtype=torch.float32)


@dataclass(frozen=True)
class Shape:
    """`voxels` (N, 3); `vertices` (V, 3) on the grid; `sdf` (V,) in cells; `color` (V,) index."""

    voxels: Tensor
    vertices: Tensor
    sdf: Tensor
    color: Tensor

    def features(self) -> Tensor:
        """What the SLAT encoder reads, (N, 256): distance and colour at 4^3 points per voxel."""
        step = torch.arange(SCALE)
        offset = torch.cartesian_prod(step, step, step)  # (64, 3)
        points = (self.voxels[:, None] * SCALE + offset).reshape(-1, 3)
        rows = torch.searchsorted(key(self.vertices), key(points))
        near = (self.sdf[rows].abs() < 3).unsqueeze(-1)
        color = torch.where(near, COLOR_TABLE[self.color[rows].long()] * 2 - 1, 0.0)
        count = len(self.voxels)
        distance = self.sdf[rows].clamp(-3, 3).view(count, -1) / 3
        return torch.cat([distance, color.view(count, -1)], dim=1)


MARGIN = 0.75  # cells; FlexiCubes closes a surface only where there is a vertex outside it


def within_grid(vertices: Tensor, sdf: Tensor) -> Tensor:
    """The distance (V,) in cells, with the object cut off `MARGIN` before the grid's own faces.

    Objects are as long as the grid: without this their end faces would have no vertex outside.
    """
    half = CELLS / 2
    beyond = (vertices.float() - half).abs().amax(1) - (half - MARGIN)
    return torch.maximum(sdf, beyond)


def key(vertices: Tensor) -> Tensor:
    """Grid vertices (V, 3) as sortable numbers."""
    x, y, z = vertices.long().unbind(-1)
    return (x * SIDE + y) * SIDE + z


def vertices_of(voxels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Grid vertices (V, 3) of the voxels (N, 3), sorted."""
    step = np.arange(SCALE + 1)
    offset = np.stack(np.meshgrid(step, step, step, indexing="ij"), -1).reshape(-1, 3)
    points = (voxels[:, None] * SCALE + offset).reshape(-1, 3)
    keys = np.unique((points[:, 0] * SIDE + points[:, 1]) * SIDE + points[:, 2])
    return np.stack([keys // (SIDE * SIDE), keys // SIDE % SIDE, keys % SIDE], 1)


def truth(toy: ToyObject, voxels: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """Distance in cells (V,) float16 and colour index (V,) uint8 at the voxels' grid vertices."""
    points = (vertices_of(voxels) / CELLS - 0.5).astype(np.float32)
    distances = toy.part_distances(points)  # (P, V)
    colors = np.array([COLORS.index(part.color) for part in toy.parts], np.uint8)
    sdf = (distances.min(0) * CELLS).clip(-8, 8).astype(np.float16)
    return sdf, colors[distances.argmin(0)]


def shape_of(toy: ToyObject) -> Shape:
    """Ground truth of one object."""
    voxels = np.argwhere(toy.surface_voxels(STRUCTURE))
    return _shape(voxels, *truth(toy, voxels))


def _row(index: int) -> tuple[NDArray, NDArray]:
    return truth(WORLD.object(index), np.argwhere(surface(STRUCTURE)[index]))


@once
def _arrays() -> tuple[NDArray, NDArray, NDArray]:
    names = [FOLDER / f"shapes-{part}.npy" for part in ("sdf", "color", "start")]
    if not all(name.exists() for name in names):
        surface(STRUCTURE)
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            rows = pool.map(_row, range(OBJECTS), chunksize=8)
            made = list(track(rows, "measuring shapes", total=OBJECTS))
        start = np.cumsum([0, *(len(sdf) for sdf, _ in made)])
        parts = (np.concatenate([row[0] for row in made]), np.concatenate([r[1] for r in made]))
        for name, array in zip(names, (*parts, start), strict=True):
            np.save(name, array)
    sdf, color, start = (np.load(name, mmap_mode="r") for name in names)
    return sdf, color, start


def shape(index: int) -> Shape:
    """Ground truth of training object `index`, from the cache."""
    sdf, color, start = _arrays()
    voxels = np.argwhere(surface(STRUCTURE)[index])
    rows = slice(int(start[index]), int(start[index + 1]))
    return _shape(voxels, np.array(sdf[rows]), np.array(color[rows]))


def _shape(voxels: NDArray, sdf: NDArray, color: NDArray) -> Shape:
    vertices = torch.from_numpy(vertices_of(voxels))
    distance = within_grid(vertices, torch.from_numpy(sdf).float())
    return Shape(torch.from_numpy(voxels), vertices, distance, torch.from_numpy(color))


def batch(shapes: list[Shape]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Several shapes as one: coords (N, 4), features (N, 256), sdf (V,), colour (V,)."""
    coords = torch.cat(
        [torch.cat([torch.full((len(s.voxels), 1), k), s.voxels], 1) for k, s in enumerate(shapes)]
    )
    return (
        coords.int(),
        torch.cat([s.features() for s in shapes]),
        torch.cat([s.sdf for s in shapes]),
        torch.cat([s.color for s in shapes]),
    )


if __name__ == "__main__":
    _arrays()
