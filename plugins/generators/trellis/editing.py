"""Editing without training: another appearance, part of an object anew, two conditions mixed.

An object is its structured latent at its voxels. Both stages can start from it: `strength` says
how much of the way from noise is sampled again, and a region how much of the object stays.

Legend: N voxels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modalign import Mesh, TokenStream

from .encoding import encode_structure
from .flexicubes import enclosed
from .formats import as_mesh
from .sampler import Start, mixed
from .sparse import Coordinates, SparseTensor
from .voxels import voxelize

if TYPE_CHECKING:
    from modalign.specs import Asset

    from .generator import Report, Trellis

logger = logging.getLogger(__name__)

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
def variants(
    trellis: Trellis,
    stream: TokenStream,
    mesh: Mesh,
    *,
    seed: int,
    progress: Report = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> list[Mesh]:
    """The shape of `mesh` in the appearance that each element (B, K, D) of `stream` describes.

    Needs no encoder: the voxels of the mesh are kept, and only the second stage is sampled.
    The mesh may be open, but then its voxels may enclose nothing that could be filled.

    Raises:
        ValueError: the mesh has no surface.
        GenerationError: a stage produced nothing usable; the message names it.
    """
    resolution = trellis.models.latent_flow.resolution
    voxels = voxelize(mesh, resolution)
    at = Coordinates(voxels.at.coords.to(trellis.device), 1)
    if trellis.config.fill_cavities and voxels.open_edges and not enclosed(at, resolution).any():
        logger.warning(
            "the mesh has %d open edges and its voxels enclose nothing: its inside cannot be "
            "filled, so thick walls may come out hollow",
            voxels.open_edges,
        )
    settings = trellis.config.latent.override(steps=steps, guidance=guidance)
    latents = [
        trellis.sample_latent(
            condition, at, settings, torch.Generator().manual_seed(seed + k), progress
        )
        for k, condition in enumerate(trellis.pack(stream).split(1))
    ]
    return [as_mesh(trellis.decode(latent, progress)) for latent in latents]


def edit(
    trellis: Trellis,
    stream: TokenStream,
    original: SparseTensor,
    *,
    seed: int,
    strength: float = 1.0,
    structure_strength: float | None = None,
    keep: Region | None = None,
    progress: Report = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> list[Mesh]:
    """An encoded object, sampled again in part under each element (B, K, D) of `stream`.

    Element k draws its noise from `seed + k`.

    Args:
        stream: tokens of what it shall become.
        original: from `encode`.
        seed: of the first element.
        strength: how much of the schedule is sampled; 0 is the original, 1 starts from noise.
        structure_strength: the same for the voxels alone; 0 keeps them. `strength` if None.
        keep: region where voxels and latents stay; see `editing.box`. The surface near its
            border may move a little, since neighbours are decoded together.
        progress: called after every step of every stage.
        steps: of both flow models; the pipeline's own numbers if None.
        guidance: of both flow models, 0 is off; the pipeline's own if None.

    Raises:
        ValueError: a strength is not within 0..1, or the region answers with something else.
        WeightsError: voxels are to be edited, and this pipeline has no encoders.
        GenerationError: a stage produced nothing usable; the message names it.
    """
    both = strength if structure_strength is None else structure_strength
    latents = [
        edit_latent(
            trellis, condition, original, seed=seed + k, strength=strength,
            structure_strength=both, keep=keep, progress=progress, steps=steps,
            guidance=guidance,
        )
        for k, condition in enumerate(trellis.pack(stream).split(1))
    ]  # fmt: skip
    return [as_mesh(trellis.decode(latent, progress)) for latent in latents]


def generate_mixed(
    trellis: Trellis,
    streams: Sequence[TokenStream],
    weights: Sequence[float],
    *,
    seed: int,
    progress: Report = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> list[Asset]:
    """Meshes under several conditions at once: at each step the weighted mean of velocities.

    Element k mixes element k (B, K, D) of every stream, such as one from a text and one from
    a picture, and draws its noise from `seed + k`.

    Raises:
        ValueError: weights do not sum to 1, one is negative, or streams are not as many, or
            of another batch size.
        GenerationError: a stage produced nothing usable; the message names it.
    """
    conditions = [trellis.pack(stream).split(1) for stream in streams]
    if len({len(each) for each in conditions}) != 1:
        raise ValueError(
            f"streams to mix need one batch size, got {[len(each) for each in conditions]}"
        )
    return [
        trellis.generate_one(
            torch.cat(several), seed=seed + k, progress=progress, steps=steps,
            guidance=guidance, combine=mixed(weights),
        )
        for k, several in enumerate(zip(*conditions, strict=True))
    ]  # fmt: skip


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
    """The structured latent of an object, edited under a condition (1, S, C); see `edit`.

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
