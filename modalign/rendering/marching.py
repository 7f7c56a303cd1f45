"""Marching rays through sparse voxels with a small factorised field in each, differentiable.

Legend: N voxels, R rank, D samples per axis, M samples on rays, P pixels.
Source: facts of TRELLIS, 3.4 (Strivec).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modalign.rendering.cameras import Camera

SH_0 = 0.28209479177387814  # the constant spherical harmonic
STEPS_PER_VOXEL = 16
MAX_ALPHA = 0.999
RAYS_AT_ONCE = 1 << 11
SAMPLES_AT_ONCE = 1 << 16


def march(
    cells: Tensor,
    trivec: Tensor,
    density: Tensor,
    features_dc: Tensor,
    resolution: int,
    camera: Camera,
    size: int,
) -> tuple[Tensor, Tensor]:
    """A picture of voxels on black (size, size, 3) and how much each pixel covers (size, size).

    Over a background b it is `picture + (1 - alpha) * b`. A ray is cut at the voxels' sides and
    each piece into equal steps of at most a 16th of a voxel, sampled in the middle; the light of
    a constant field is then exact. Differentiable in `trivec`, `density` and `features_dc`; where
    a gradient is asked for, samples are computed again on the way back.

    Args:
        cells: integer places (N, 3) of the voxels, each different, in 0..resolution - 1.
        trivec: factors along the axes (N, R, 3, D).
        density: (N, R).
        features_dc: (N, R, 1, 3).
        resolution: voxels along a side of the cube -0.5..0.5.
        camera: where from.
        size: pixels on a side.
    """
    rows = trivec.permute(0, 2, 3, 1).reshape(-1, trivec.shape[1])  # (N 3 D, R): what is gathered
    mixing = torch.cat([density[..., None], SH_0 * features_dc[:, :, 0]], dim=2)  # (N, R, 4)
    directions = torch.from_numpy(camera.rays(size)).to(trivec)
    if len(cells) == 0:
        return trivec.new_zeros(size, size, 3), trivec.new_zeros(size, size)
    grid = torch.full((resolution,) * 3, -1, dtype=torch.long, device=cells.device)
    grid[tuple(cells.long().T)] = torch.arange(len(cells), device=cells.device)
    wanted = torch.is_grad_enabled() and (rows.requires_grad or mixing.requires_grad)
    parts = []
    for begin in range(0, len(directions), RAYS_AT_ONCE):
        some = directions[begin : begin + RAYS_AT_ONCE]
        ray, voxel, within, length = _samples(grid, cells, camera, some)
        found = [trivec.new_zeros(0, 4)]
        for first in range(0, len(ray), SAMPLES_AT_ONCE):
            piece = slice(first, first + SAMPLES_AT_ONCE)
            look_up = partial(_look_up, voxel[piece], within[piece], trivec.shape[3])
            if wanted:
                found.append(
                    checkpoint(look_up, rows, mixing, use_reentrant=False, preserve_rng_state=False)
                )
            else:
                found.append(look_up(rows, mixing))
        parts.append(_compose(torch.cat(found), ray, length, len(some)))
    picture = torch.cat(parts).view(size, size, 4)
    return picture[..., :3], picture[..., 3]


def _samples(
    grid: Tensor, cells: Tensor, camera: Camera, directions: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ray, voxel, place within it (M, 3) in 0..1, and length of every step, rays in order."""
    resolution = len(grid)
    # Voxels are units from here on. No ray is quite parallel to a side.
    origin = (torch.from_numpy(camera.position).to(directions) + 0.5) * resolution
    directions = directions * resolution
    directions = torch.where(directions.abs() < 1e-9, 1e-9, directions)
    low, high = cells.amin(dim=0), cells.amax(dim=0) + 1
    crossings = []
    entry = torch.zeros_like(directions[:, 0])  # a camera inside sees what is ahead
    leave = torch.full_like(entry, torch.inf)
    for axis in range(3):
        planes = torch.arange(int(low[axis]), int(high[axis]) + 1).to(directions)
        times = (planes - origin[axis]) / directions[:, axis, None]
        entry = torch.maximum(entry, torch.minimum(times[:, 0], times[:, -1]))
        leave = torch.minimum(leave, torch.maximum(times[:, 0], times[:, -1]))
        crossings.append(times)
    leave = torch.maximum(entry, leave)  # a ray that passes by has no length inside
    times = torch.cat(crossings, dim=1).clamp(entry[:, None], leave[:, None]).sort(dim=1).values
    middle = (times[:, 1:] + times[:, :-1]) / 2
    steps = times.diff(dim=1)
    ray, piece = (steps > 1e-7 * times[:, 1:]).nonzero(as_tuple=True)
    begin, span = times[ray, piece], steps[ray, piece]
    place = (origin + middle[ray, piece, None] * directions[ray]).long().clamp(0, resolution - 1)
    voxel = grid[tuple(place.T)]
    inside = voxel >= 0
    ray, begin, span, voxel = ray[inside], begin[inside], span[inside], voxel[inside]

    speed = directions[ray].norm(dim=1)  # voxels per unit of time
    number = (span * speed * STEPS_PER_VOXEL - 1e-4).ceil().long().clamp(min=1)
    who = torch.repeat_interleave(number)
    rank = torch.arange(len(who), device=who.device) - (number.cumsum(0) - number)[who]
    time = begin[who] + span[who] * (rank + 0.5) / number[who]
    within = origin + time[:, None] * directions[ray[who]] - cells[voxel[who]]
    length = (span * speed / number / resolution)[who]
    return ray[who], voxel[who], within.clamp(0, 1), length


def _look_up(voxel: Tensor, within: Tensor, dim: int, rows: Tensor, mixing: Tensor) -> Tensor:
    """Colour and density (M, 4) at places within voxels."""
    at = within * dim - 0.5
    index = at.floor().clamp(0, dim - 2)
    share = (at - index)[..., None]  # the outermost half samples are extrapolated
    first = (voxel[:, None] * 3 + torch.arange(3, device=voxel.device)) * dim + index.long()
    along = rows[first] * (1 - share) + rows[first + 1] * share  # (M, 3, R)
    factor = along.prod(dim=1)
    mixed = (factor[:, None] @ mixing[voxel])[:, 0]  # (M, 4)
    return torch.cat([mixed[:, 1:].sigmoid(), F.softplus(mixed[:, :1])], dim=1)


def _compose(found: Tensor, ray: Tensor, length: Tensor, pixels: int) -> Tensor:
    """Light and cover (P, 4) of samples (M, 4) in the order of their rays."""
    alpha = -torch.expm1(-found[:, 3] * length)
    alpha = alpha.clamp(max=MAX_ALPHA)
    # One running sum for all rays; each ray's own begins where the one before it ended.
    clear = torch.log1p(-alpha.double())
    until = clear.cumsum(0) - clear
    count = torch.bincount(ray, minlength=pixels)
    start = (count.cumsum(0) - count)[ray]
    weight = alpha * (until - until[start]).exp().to(alpha)
    light = torch.cat([found[:, :3], torch.ones_like(found[:, :1])], dim=1) * weight[:, None]
    return light.new_zeros(pixels, 4).index_add(0, ray, light)
