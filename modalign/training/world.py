"""The processes of a run: which device each has, and how the trained tensors lie over them."""

from __future__ import annotations

import os
import signal
import time
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

PATIENCE = 5.0  # seconds: torchrun ends the others well within, once one has failed
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

    def gathered(self, own: list[Any]) -> list[Any]:
        """What all processes have, in the order of their ranks."""
        if self.mesh is None:
            return own
        found: list[list[Any]] = [[] for _ in range(self.size)]
        dist.all_gather_object(found, own)
        return [one for several in found for one in several]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails inside on any process fails on all: the first of them raises, others exit.

        Nothing inside may wait for another process.

        Raises:
            SystemExit: with code 2, without a word, where a process of lower rank has the error.
        """
        failure: ModalignError | None = None
        try:
            yield
        except ModalignError as error:
            failure = error
        failed = self.gathered([] if failure is None else [self.rank])
        if failure is not None and failed[0] == self.rank:
            raise failure
        if failed:
            time.sleep(PATIENCE)  # or torchrun might end the first one before it has told
            raise SystemExit(2)

    def place(self, axis: str) -> int:
        """This process's place on an axis of the mesh."""
        return 0 if self.mesh is None else self.mesh.get_local_rank(axis)


@contextmanager
def patient() -> Iterator[None]:
    """For what every process does before they are joined: usually all fail alike.

    Rank 0 tells at once; what another one tells comes late enough for `torchrun` to have ended it,
    so that an error of one process alone is seen, too.
    """
    try:
        yield
    except ModalignError:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(PATIENCE)
        raise


@contextmanager
def joined(device: str, shard: int | None = None) -> Iterator[World]:
    """The world that `torchrun` has set up, or a process alone.

    `shard` processes hold one copy of the trained tensors together: all if None, 1 replicates.

    Raises:
        ModalignError: `shard` does not divide the number of processes, or there are fewer GPUs.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    with patient():
        place = _place(device, rank, size, shard)
    if size == 1:
        yield World(device=place)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    copies = size // (shard or size)
    try:
        axes = ("replicate", "shard")
        mesh = init_device_mesh(place.type, (copies, size // copies), mesh_dim_names=axes)
        yield World(rank, size, place, mesh)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _place(device: str, rank: int, size: int, shard: int | None) -> torch.device:
    """Where this process computes, once it is known that all of them can."""
    if shard is not None and (shard < 1 or size % shard):
        raise ModalignError(
            f"--shard {shard} does not divide the {size} processes of this run; use a divisor"
        )
    place = torch.device(device)
    if size == 1:
        return place
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
    return place


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
