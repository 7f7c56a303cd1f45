"""Editing without training: another appearance, part of an object anew, two conditions mixed.

An object is its structured latent at its voxels. Both stages can start from it: `strength` says
how much of the way from noise is sampled again, and a region how much of the object stays.

Legend: N voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .encoding import encode_structure
from .sampler import Start
from .sparse import Coordinates, SparseTensor

if TYPE_CHECKING:
    from .generator import Report, Trellis

Region = Callable[[Tensor], Tensor]
"""Called with points (N, 3) of the world, -0.5..0.5; says of each whether it is inside, (N,)."""

ROWS_AT_ONCE = 1024  # of a table of distances between voxels


def box(low: Sequence[float], high: Sequence[float]) -> Region:
    """The region of an axis-aligned box, its faces included.

    Raises:
        ValueError: the corners are not three numbers each, or a side is negative.
    """
    first, last = torch.tensor(low), torch.tensor(high)
    if first.shape != (3,) or last.shape != (3,) or bool((first > last).any()):
        raise ValueError(f"a box needs two corners (x, y, z), low and high, got {low} and {high}")
    return lambda points: ((points >= first.to(points)) & (points <= last.to(points))).all(dim=1)


def inside_region(region: Region, at: Coordinates, resolution: int) -> Tensor:
    """Whether the centres of the voxels lie in a region, (N,) bool.

    Raises:
        ValueError: the region answers with something else.
    """
    result = region((at.coords[:, 1:].float() + 0.5) / resolution - 0.5)
    if result.dtype != torch.bool or result.shape != (len(at),):
        raise ValueError(
            f"a region must answer {len(at)} points with as many booleans, "
            f"got {tuple(result.shape)} of {result.dtype}"
        )
    return result


@torch.no_grad()
def edit_latent(
    trellis: Trellis,
    condition: Tensor,
    original: SparseTensor,
    *,
    seed: int,
    strength: float,
    structure_strength: float,
    keep: Region | None,
    progress: Report = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> SparseTensor:
    """The structured latent of an object, edited under a condition (1, S, C); see `Trellis.edit`.

    Raises:
        ValueError: a strength is not within 0..1, the region answers with something else, or
            `original` is not one object of this pipeline.
        GenerationError: a stage produced nothing usable; the message names it.
    """
    width = trellis.models.latent_flow.in_channels
    got = tuple(original.feats.shape)
    if original.at.batch_size != 1 or len(original.at) == 0 or got[1:] != (width,):
        raise ValueError(
            f"the original must be one object with {width} numbers at each voxel, as encode() "
            f"returns it; got {original.at.batch_size} objects and latents {got}"
        )
    for name, value in {"strength": strength, "structure_strength": structure_strength}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be within 0..1, got {value}")
    generator = torch.Generator().manual_seed(seed)
    resolution = trellis.models.latent_flow.resolution
    at = original.at
    if structure_strength > 0:
        settings = trellis.config.structure.override(steps=steps, guidance=guidance)
        begin = None
        if structure_strength < 1 or keep is not None:
            grid = encode_structure(trellis.encoders, original.at, resolution)
            begin = Start(grid, structure_strength, _kept_cells(keep, grid, resolution))
        at = trellis.sample_structure(condition, settings, generator, progress, start=begin)
        at = _spliced(at, original.at, keep, resolution)

    rows, same = nearest_rows(at, original.at)
    data = original.feats[rows]
    if strength == 0:
        return SparseTensor(at, data)
    kept = None if keep is None else (inside_region(keep, at, resolution) & same)[:, None]
    settings = trellis.config.latent.override(steps=steps, guidance=guidance)
    begin = None
    if strength < 1 or kept is not None:
        mean = data.new_tensor(trellis.models.normalization.mean)
        std = data.new_tensor(trellis.models.normalization.std)
        begin = Start((data - mean) / std, strength, kept)
    edited = trellis.sample_latent(condition, at, settings, generator, progress, start=begin)
    # Scaled there and back, kept rows would differ in their last bits.
    return edited if kept is None else edited.replace(torch.where(kept, data, edited.feats))


def nearest_rows(wanted: Coordinates, given: Coordinates) -> tuple[Tensor, Tensor]:
    """For each wanted voxel the row of the nearest given one, and whether it is the same, (N,)."""
    places = given.coords[:, 1:].float()
    rows, same = [], []
    for some in wanted.coords[:, 1:].float().split(ROWS_AT_ONCE):
        distance, row = torch.cdist(some, places).min(dim=1)
        rows.append(row)
        same.append(distance == 0)
    return torch.cat(rows), torch.cat(same)


def _kept_cells(keep: Region | None, grid: Tensor, resolution: int) -> Tensor | None:
    """Cells (1, 1, r, r, r) of a structure latent all of whose voxels lie in the region."""
    if keep is None:
        return None
    side = grid.shape[-1]
    axis = torch.arange(resolution, dtype=torch.int32, device=grid.device)
    every = torch.cartesian_prod(axis, axis, axis)
    inside = inside_region(keep, _one_element(every), resolution)
    scale = resolution // side
    cells = inside.view(side, scale, side, scale, side, scale).all(dim=5).all(dim=3).all(dim=1)
    return cells[None, None]


def _spliced(
    sampled: Coordinates, original: Coordinates, keep: Region | None, resolution: int
) -> Coordinates:
    """The original's voxels inside the region, the sampled ones outside, sorted."""
    if keep is None:
        return sampled
    new = sampled.coords[~inside_region(keep, sampled, resolution)]
    old = original.coords[inside_region(keep, original, resolution)]
    return _one_element(torch.cat([new, old])[:, 1:].unique(dim=0))


def _one_element(xyz: Tensor) -> Coordinates:
    return Coordinates(torch.nn.functional.pad(xyz, (1, 0)), 1)
