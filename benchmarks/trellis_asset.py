"""One asset of TRELLIS, stage by stage, at a given number of voxels.

Random weights find no object, so the voxels are given, and every stage still does its whole work.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

STAGES = ("structure", "latent", "mesh")


@dataclass(frozen=True)
class Asset:
    """Seconds by stage, and the most memory in GB that tensors took on a GPU."""

    seconds: dict[str, float]
    memory: float

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())


@torch.no_grad()
def made(trellis: Any, at: Any, *, steps: int, seed: int = 0) -> Asset:
    """An asset of `trellis` at the voxels `at`, timed; guided as its pipeline says."""
    device, tokens = trellis.device, trellis.accepts.num_tokens
    draw = torch.Generator().manual_seed(seed)
    condition = torch.randn(1, tokens, trellis.accepts.groups[0].dim, generator=draw).to(device)
    settings = {
        name: getattr(trellis.config, name).override(steps=steps, guidance=None)
        for name in ("structure", "latent")
    }
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock = [_now(device)]
    grid = trellis.sample_grid(condition, settings["structure"], draw)
    trellis.models.structure_decoder(grid)
    clock.append(_now(device))
    latent = trellis.sample_latent(condition, at, settings["latent"], draw)
    clock.append(_now(device))
    trellis.models.mesh_decoder(latent)
    clock.append(_now(device))
    spent = {name: end - start for name, start, end in zip(STAGES, clock, clock[1:], strict=False)}
    memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
    return Asset(spent, memory)


def compile_blocks(trellis: Any) -> None:
    """Compile every block of both flow models, one graph for all blocks of one."""
    for flow in (trellis.models.structure_flow, trellis.models.latent_flow):
        for block in flow.blocks:
            block.compile(dynamic=False)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
