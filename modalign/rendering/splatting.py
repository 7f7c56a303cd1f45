"""Gaussian splatting in plain torch, differentiable, on any device.

Every splat is projected to a Gaussian on the picture, small tiles list the splats that reach them,
and each pixel lays those of its tile over each other from front to back.

Legend: K splats, C tiles of a chunk, P pixels of a tile, R splats of a round.
Source: facts of TRELLIS, section 4, which are those of Mip-Splatting (arXiv:2311.16493).
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modalign.rendering.cameras import Camera

FILTER = 0.1  # px^2 added to every projected covariance
NEAR = 0.2  # what lies before it is not drawn
MAX_ALPHA = 0.99
MIN_ALPHA = 1 / 255
MIN_TRANSMITTANCE = 1e-4
BLOCK = 16  # px: a splat reaches whole blocks of the picture
TILE = 8  # px: blocks are cut in tiles, which list fewer splats that do not matter
ROUND = 32  # splats of each tile laid over each other at once
BUDGET = {"cpu": 1 << 20, "cuda": 1 << 25}  # numbers in one tensor of a chunk


@dataclass(frozen=True)
class _Splats:
    """Splats on the picture, nearest first.

    Attributes:
        pixel: (K, 2) centres; pixel centres are integers.
        conic: (K, 3) inverse covariances xx, xy, yy in px^-2.
        log_opacity: (K,).
        color: (K, 4) RGB and 1.
        low, high: (K, 2) first and last tile reached, as (column, row).
    """

    pixel: Tensor
    conic: Tensor
    log_opacity: Tensor
    color: Tensor
    low: Tensor
    high: Tensor


def splat(
    xyz: Tensor,
    axes: Tensor,
    opacity: Tensor,
    color: Tensor,
    camera: Camera,
    size: int,
) -> tuple[Tensor, Tensor]:
    """A picture of splats on black, (size, size, 3), and how much each pixel covers, (size, size).

    Over a background b it is `picture + (1 - alpha) * b`. Colours are not clipped. Differentiable
    in all four tensors; where a gradient is asked for, chunks are computed again on the way back,
    so that memory stays bounded by the lists. On a CUDA device gsplat takes over where it is
    installed (`pip install modalign[gsplat]`).

    Args:
        xyz: centres (K, 3).
        axes: (K, 3, 3), own axes as columns, as long as the standard deviations there.
        opacity: (K,) in 0..1.
        color: (K, 3), 0 or more.
        camera: where from.
        size: pixels on a side.
    """
    if xyz.is_cuda and importlib.util.find_spec("gsplat") is not None:
        return _gsplat(xyz, axes, opacity, color, camera, size)
    splats = _project(xyz, axes, opacity, color, camera, size)
    grid = math.ceil(size / BLOCK) * (BLOCK // TILE)
    members, start, count = _lists(splats, grid)
    tiles = count.argsort(descending=True, stable=True)
    tiles = tiles[: int((count > 0).sum())]
    chunk = max(1, BUDGET.get(xyz.device.type, BUDGET["cpu"]) // (ROUND * TILE**2))
    parts, done = [xyz.new_zeros(1, TILE**2, 4)], []
    wanted = torch.is_grad_enabled() and any(
        part.requires_grad for part in (xyz, axes, opacity, color)
    )
    for first in range(0, len(tiles), chunk):
        some = tiles[first : first + chunk]
        compose = partial(_compose, some, start[some], count[some], members, grid)
        inputs = (splats.pixel, splats.conic, splats.log_opacity, splats.color)
        if wanted:
            part = checkpoint(compose, *inputs, use_reentrant=False, preserve_rng_state=False)
        else:
            part = compose(*inputs)
        parts.append(part)
        done.append(some)
    place = torch.zeros(grid * grid, dtype=torch.long, device=xyz.device)  # 0: an empty tile
    if done:
        place[torch.cat(done)] = torch.arange(1, len(tiles) + 1, device=xyz.device)
    picture = torch.cat(parts)[place].view(grid, grid, TILE, TILE, 4).transpose(1, 2)
    picture = picture.reshape(grid * TILE, grid * TILE, 4)[:size, :size]
    return picture[..., :3], picture[..., 3]


def _project(
    xyz: Tensor, axes: Tensor, opacity: Tensor, color: Tensor, camera: Camera, size: int
) -> _Splats:
    """Those splats that reach the picture, nearest first; of equally near ones the first."""
    extrinsics = torch.as_tensor(camera.extrinsics).to(xyz)
    fx, fy, cx, cy = (float(camera.intrinsics[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
    seen = xyz @ extrinsics[:3, :3].T + extrinsics[:3, 3]
    depth, order = seen[:, 2].detach().sort(stable=True)
    order = order[depth > NEAR]
    seen, axes, opacity, color = (x[order] for x in (seen, axes, opacity, color))
    x, y, z = seen.unbind(1)
    # The reference's -1..1 coordinate n becomes ((n + 1) size - 1) / 2.
    pixel = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=1) * size - 0.5

    # How the projection stretches space around a splat; far outside the picture it is held.
    u = (x / z).clamp(-1.3 * 0.5 / fx, 1.3 * 0.5 / fx)
    v = (y / z).clamp(-1.3 * 0.5 / fy, 1.3 * 0.5 / fy)
    right, down, ahead = extrinsics[:3, :3]
    across = (fx * size / z)[:, None] * (right - u[:, None] * ahead)  # (K, 3)
    along = (fy * size / z)[:, None] * (down - v[:, None] * ahead)
    p, q = (torch.stack([across, along], dim=1) @ axes).unbind(1)  # (K, 3): the axes, flat
    xx, xy, yy = (p * p).sum(1), (p * q).sum(1), (q * q).sum(1)
    # The determinants by sums of squares: xx * yy - xy * xy loses all digits of a long splat.
    before = torch.linalg.cross(p, q).square().sum(1)
    after = before + FILTER * (xx + yy) + FILTER**2
    xx, yy = xx + FILTER, yy + FILTER
    # Widening by the filter spreads the same light: a splat thinner than a pixel is fainter.
    thick = (before > 1e-6) & (after > 1e-6)
    safe = torch.where(thick, before / (after + 1e-6), torch.ones_like(before))
    opacity = torch.where(thick, opacity * (safe + 1e-6).sqrt(), torch.zeros_like(opacity))
    conic = torch.stack([yy, -xy, xx], dim=1) / after[:, None]

    with torch.no_grad():
        middle = (xx + yy) / 2
        widest = middle + (middle.square() - after).clamp(min=0).sqrt()
        radius = (3 * widest.sqrt()).ceil()
        blocks = math.ceil(size / BLOCK)
        # Whole blocks that the square of this radius touches.
        first = ((pixel - radius[:, None]) / BLOCK).clamp(0, blocks).trunc() * BLOCK
        last = ((pixel + radius[:, None] + BLOCK - 1) / BLOCK).clamp(0, blocks).trunc() * BLOCK - 1
        # Nearer than that only where alpha can reach the least that counts.
        reach = (2 * (255 * opacity.clamp(min=MIN_ALPHA)).log() * 1.0001 + 1e-4)[:, None]
        half = (reach * torch.stack([xx, yy], dim=1)).sqrt() + 1e-3
        first = torch.maximum(first, (pixel - half).ceil())
        last = torch.minimum(last, (pixel + half).floor()).clamp(max=size - 1)
        keep = (opacity >= MIN_ALPHA) & (first <= last).all(dim=1) & pixel.isfinite().all(dim=1)
        low, high = ((edge[keep] / TILE).floor().long() for edge in (first, last))
    ones = torch.ones_like(color[keep][:, :1])
    return _Splats(
        pixel=pixel[keep],
        conic=conic[keep],
        log_opacity=opacity[keep].log(),
        color=torch.cat([color[keep], ones], dim=1),
        low=low,
        high=high,
    )


def _lists(splats: _Splats, grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """Splats of all tiles, near ones first, and where each tile's begin and how many there are."""
    width, height = (splats.high - splats.low + 1).unbind(1)
    reached = width * height
    who = torch.repeat_interleave(reached)
    at = torch.arange(len(who), device=who.device) - (reached.cumsum(0) - reached)[who]
    column = splats.low[who, 0] + at % width[who]
    row = splats.low[who, 1] + torch.div(at, width[who], rounding_mode="floor")
    tile = row * grid + column
    count = torch.bincount(tile, minlength=grid * grid)
    members = who[tile.argsort(stable=True)]
    return members, count.cumsum(0) - count, count


def _compose(
    tiles: Tensor,
    start: Tensor,
    count: Tensor,
    members: Tensor,
    grid: int,
    pixel: Tensor,
    conic: Tensor,
    log_opacity: Tensor,
    color: Tensor,
) -> Tensor:
    """Light and cover (C, P, 4) of some tiles, their splats laid over each other in rounds."""
    edge = torch.arange(TILE, device=tiles.device, dtype=pixel.dtype)
    corner = torch.stack([tiles % grid, torch.div(tiles, grid, rounding_mode="floor")], dim=1)
    corner = corner.to(pixel.dtype) * TILE
    total = pixel.new_zeros(len(tiles), TILE**2, 4)
    clear = pixel.new_ones(len(tiles), TILE**2)  # transmittance so far
    alive = torch.arange(len(tiles), device=tiles.device)
    for first in range(0, int(count.max()), ROUND):
        with torch.no_grad():
            alive = alive[(count[alive] > first) & (clear[alive] >= MIN_TRANSMITTANCE).any(dim=1)]
        if len(alive) == 0:
            break
        rank = first + torch.arange(min(ROUND, int(count[alive].max()) - first)).to(alive)
        there = rank < count[alive, None]
        who = members[(start[alive, None] + rank).clamp(max=len(members) - 1)]  # (C, R)
        dx = corner[alive, None, :1] + edge - pixel[who, :1]  # (C, R, TILE)
        dy = corner[alive, None, 1:] + edge - pixel[who, 1:]
        a, b, c = conic[who].unbind(-1)
        faint = torch.where(there, log_opacity[who], -torch.inf)
        across = faint[..., None] - 0.5 * a[..., None] * dx * dx
        along = -0.5 * c[..., None] * dy * dy
        mixed = (-b[..., None] * dy)[..., :, None] * dx[..., None, :]
        power = mixed + across[..., None, :] + along[..., :, None]
        alpha = power.flatten(2).exp().clamp(max=MAX_ALPHA)  # (C, R, P)
        alpha = alpha * (alpha >= MIN_ALPHA)
        after = clear[alive, None] * (1 - alpha).cumprod(dim=1)
        before = torch.cat([clear[alive, None], after[:, :-1]], dim=1)
        weight = alpha * before * (after >= MIN_TRANSMITTANCE)
        total = total.index_add(0, alive, weight.transpose(1, 2) @ color[who])
        clear = clear.index_copy(0, alive, after[:, -1])
    return total


def _gsplat(
    xyz: Tensor, axes: Tensor, opacity: Tensor, color: Tensor, camera: Camera, size: int
) -> tuple[Tensor, Tensor]:
    """The same by gsplat's CUDA kernels, near but not equal: they cap alpha at 0.999."""
    import gsplat

    intrinsics = torch.as_tensor(camera.intrinsics).to(xyz)
    intrinsics[:2] *= size
    picture, alpha, _ = gsplat.rasterization(
        means=xyz,
        quats=None,
        scales=None,
        covars=axes @ axes.transpose(1, 2),
        opacities=opacity,
        colors=color,
        viewmats=torch.as_tensor(camera.extrinsics).to(xyz)[None],
        Ks=intrinsics[None],
        width=size,
        height=size,
        near_plane=NEAR,
        eps2d=FILTER,
        rasterize_mode="antialiased",  # a splat thinner than a pixel is fainter
        packed=False,
    )
    return picture[0], alpha[0, ..., 0]
