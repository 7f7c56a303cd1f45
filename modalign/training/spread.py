"""A pipeline made ready to train: precision, compiled blocks, and FSDP2 over the processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from modalign.errors import BuildError
from modalign.models.dit import TokenStreamDiT
from modalign.pipeline import Pipeline
from modalign.recipe import TrainingConfig
from modalign.training.world import World


def spread(pipeline: Pipeline, config: TrainingConfig, world: World) -> None:
    """Cut the trained tensors over the processes, block by block, and apply options of `config`.

    Every process must hold the same float32 tensors. One copy of them lies on each group of the
    mesh's "shard" axis; groups of one hold whole copies.

    Raises:
        BuildError: "float8" without torchao or without a GPU that multiplies in it.
    """
    head = pipeline.head
    assert isinstance(head, TokenStreamDiT)
    head.gradient_checkpointing = config.gradient_checkpointing
    if config.precision == "float8":
        _to_float8(head, world.device)
    if config.compile:
        for block in head.blocks:
            block.compile()
    if world.mesh is None:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(
        param_dtype=None if config.precision == "float32" else torch.bfloat16,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # targets stay float32; the head casts what it reads
    )
    for block in head.blocks:
        fully_shard(block, mesh=world.mesh, mp_policy=policy)
    fully_shard(pipeline, mesh=world.mesh, mp_policy=policy)


def casting(config: TrainingConfig, world: World) -> Callable[[], AbstractContextManager[object]]:
    """The context of a forward pass: autocast for a process alone, where no FSDP casts."""
    if config.precision == "float32" or world.mesh is not None:
        return nullcontext
    return partial(torch.autocast, world.device.type, torch.bfloat16)


def _to_float8(head: TokenStreamDiT, device: torch.device) -> None:
    try:
        from torchao.float8 import convert_to_float8_training
    except ImportError as error:
        raise BuildError(
            "precision 'float8' needs torchao: pip install modalign[fp8]; or use 'bfloat16'"
        ) from error
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise BuildError(
            f"precision 'float8' needs a GPU of compute capability 8.9 or newer, not {device}; "
            "use 'bfloat16'"
        )
    # In and out projections stay in bfloat16: they are few, and their error is seen directly.
    convert_to_float8_training(head.blocks, module_filter_fn=_divisible)


def _divisible(module: torch.nn.Module, name: str) -> bool:
    """Whether it is a product that float8 units take: both sides multiples of 16."""
    return isinstance(module, torch.nn.Linear) and not (
        module.in_features % 16 or module.out_features % 16
    )
