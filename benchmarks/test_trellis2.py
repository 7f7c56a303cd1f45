"""What TRELLIS.2's subdivided voxels save, and what its surface costs, on a shell of voxels.

`pytest benchmarks/test_trellis2.py -s`; the two ways to a table of neighbours take turns.
"""

from __future__ import annotations

import time
from statistics import median

import torch
from modalign_plugins.generators.trellis.sparse import Coordinates, SparseTensor
from modalign_plugins.generators.trellis.trellis2.dual_grid import extract_faces
from modalign_plugins.generators.trellis.trellis2.subdivision import Subdivision

SIDE = 128
CENTRE, RADIUS = SIDE / 2 + 0.13, SIDE / 2 - 2
ROUNDS = 5


def shell(coarse: Coordinates, side: int) -> torch.Tensor:
    """Which children of voxels lie near the sphere, (N, 8), on a grid of `side`."""
    number = torch.arange(8)
    bits = torch.stack([number & 1, number >> 1 & 1, number >> 2], dim=1)
    size = SIDE / side
    place = (coarse.coords[:, None, 1:] * 2 + bits + 0.5) * size
    return ((place - CENTRE).norm(dim=-1) - RADIUS).abs() < 1.8 * size


def levels() -> list[Coordinates]:
    """Shells of rising resolution, each made of the one before, up to SIDE."""
    axis = torch.arange(32)
    xyz = torch.cartesian_prod(axis, axis, axis)
    found = [Coordinates(torch.cat([torch.zeros(len(xyz), 1, dtype=torch.long), xyz], dim=1))]
    for side in (64, 128):
        found.append(Subdivision.of(found[-1], shell(found[-1], side)).fine)
    return found


def seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def test_neighbours_from_parents_beside_a_search(benchmark):
    _, coarse, fine = levels()
    exists = shell(coarse, SIDE)
    times = {"parents": [], "search": []}

    def both():
        times["parents"].append(seconds(lambda: Subdivision.of(coarse, exists)))
        times["search"].append(seconds(lambda: Coordinates(fine.coords).neighbours))

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1)
    ratio = median(times["search"]) / median(times["parents"])
    benchmark.extra_info["search / parents"] = ratio
    print(f"\n{len(fine):,} voxels: {ratio:.1f} x as fast as a search")  # noqa: T201


def test_surface_of_a_sphere(benchmark):
    *_, at = levels()
    xyz = at.coords[:, 1:].float()

    def inside(corner):
        return (corner - CENTRE).norm(dim=-1) < RADIUS

    feats = torch.zeros(len(at), 7)
    for axis in range(3):
        near = torch.ones(3)
        near[axis] = 0
        feats[:, 3 + axis] = (inside(xyz + near) != inside(xyz + 1)).float() - 0.5
    voxels = SparseTensor(at, feats)
    _, faces = benchmark.pedantic(extract_faces, args=(voxels,), rounds=ROUNDS, warmup_rounds=1)
    rate = len(faces) / benchmark.stats["median"]
    benchmark.extra_info["triangles per second"] = rate
    print(f"\n{len(faces):,} triangles, {rate:,.0f} a second")  # noqa: T201
