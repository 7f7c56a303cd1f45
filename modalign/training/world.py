"""The processes of a run: which device each has, and how the trained tensors lie over them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.torch_version import TorchVersion

from modalign.errors import ModalignError

FIRST_CPU_TORCH = "2.13"  # measured: fully_shard on CPUs fails with 2.6; between, it is untested


@dataclass(frozen=True)
class World:
    """This process among `size`. `mesh` has axes "replicate" and "shard"; None alone."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    mesh: DeviceMesh | None = None

    def total(self, tensor: Tensor, axis: str | None = None) -> Tensor:
        """The sum of `tensor` over all processes, or over those of one axis; in place."""
        if self.mesh is not None:
            dist.all_reduce(tensor, group=self.mesh.get_group(axis) if axis else None)
        return tensor

    def agreed(self, number: int) -> int:
        """What rank 0 says."""
        if self.mesh is None:
            return number
        said = torch.tensor([number])
        dist.broadcast(said, src=0)
        return int(said)

    def place(self, axis: str) -> int:
        """This process's place on an axis of the mesh."""
        return 0 if self.mesh is None else self.mesh.get_local_rank(axis)


@contextmanager
def joined(device: str, shard: int | None = None) -> Iterator[World]:
    """The world that `torchrun` has set up, or a process alone.

    `shard` processes hold one copy of the trained tensors together: all if None, 1 replicates.

    Raises:
        ModalignError: `shard` does not divide the number of processes, or there are fewer GPUs.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if shard is not None and (shard < 1 or size % shard):
        raise ModalignError(
            f"--shard {shard} does not divide the {size} processes of this run; use a divisor"
        )
    if size == 1:
        yield World(device=torch.device(device))
        return
    place = torch.device(device)
    if place.type == "cpu" and TorchVersion(torch.__version__) < FIRST_CPU_TORCH:
        raise ModalignError(
            f"several processes on CPUs need torch {FIRST_CPU_TORCH} or newer, this is "
            f"{torch.__version__}; use one process, or GPUs"
        )
    if place.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise ModalignError(
                f"process {rank} has no GPU: there are {torch.cuda.device_count()} here; start "
                "fewer processes per machine"
            )
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    copies = size // (shard or size)
    try:
        axes = ("replicate", "shard")
        mesh = init_device_mesh(place.type, (copies, size // copies), mesh_dim_names=axes)
        yield World(rank, size, place, mesh)
        dist.barrier()
    finally:
        dist.destroy_process_group()


class StopSignal:
    """Whether SIGTERM has reached any process, known to all of them after the same step.

    The processes ask each other while a step computes, on the CPU, and hear the answer after the
    next one: no step waits.
    """

    def __init__(self, world: World) -> None:
        self.world, self.here = world, False
        self._asked: tuple[Tensor, Any] | None = None

    def __enter__(self) -> StopSignal:
        self._before = signal.signal(signal.SIGTERM, self._heard)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.here = True

    def asked(self) -> bool:
        """Call once per step, on every process."""
        if self.world.mesh is None:
            return self.here
        answer = False
        if self._asked is not None:
            flag, work = self._asked
            work.wait()
            answer = bool(flag)
        flag = torch.tensor(self.here, dtype=torch.uint8)
        self._asked = flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, async_op=True)
        return answer
