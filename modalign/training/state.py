"""What a run carries from step to step, as plain local tensors by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from modalign.pipeline import Pipeline
from modalign.recipe import TrainingConfig
from modalign.training.ema import EMA
from modalign.training.snapshots import Piece
from modalign.training.world import World

Counts = dict[str, Tensor]


class State:
    """Weights, moments, averages, and counts of what happened; AdamW, and clipping.

    Under FSDP each tensor is this process's rows of it; every update is elementwise, so nothing
    here talks to other processes except for the gradient's norm. No method waits for the device.
    """

    def __init__(self, pipeline: Pipeline, config: TrainingConfig, world: World) -> None:
        self.config, self.world = config, world
        self.parameters = pipeline.trainable()
        self.weights = {name: _local(p.detach()) for name, p in self.parameters.items()}
        matrices = [w for w in self.weights.values() if w.ndim > 1]
        vectors = [w for w in self.weights.values() if w.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},  # gains, biases, gates, as transformers does
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        for weight in self.weights.values():
            self.optimizer.state[weight] = {
                "step": torch.zeros((), device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        self.averages = {decay: EMA(self.weights, decay) for decay in config.ema_decays}
        # Samples and steps left out in all; steps now in a row, most in a row since they were last
        # looked at, and the last one.
        names = ("skipped_samples", "skipped_steps", "in_a_row", "most_in_a_row", "last")
        self.counts: Counts = {name: torch.zeros((), device=world.device) for name in names}
        self.sums: Counts = {}  # of losses and norms since the last row of the log

    def take(self, step: int, rate: float, samples: Tensor) -> Tensor:
        """Update everything by the gradients that lie at the parameters; returns their norm.

        Where the norm is not finite, or no process had a sample, weights and moments stay.
        """
        for name, parameter in self.parameters.items():
            grad = parameter.grad
            self.weights[name].grad = None if grad is None else _local(grad)
        grads = [w.grad for w in self.weights.values() if w.grad is not None]
        square = torch.nn.utils.get_total_norm(grads).square()
        norm = self.world.total(square, "shard").sqrt()
        if self.config.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(
                list(self.weights.values()), self.config.grad_clip, norm
            )
        left_out = (~norm.isfinite() | (samples == 0)).float()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The mechanism of torch's own GradScaler: the fused kernel looks at the flag by itself.
        self.optimizer.grad_scale, self.optimizer.found_inf = None, left_out  # type: ignore[attr-defined]
        self.optimizer.step()
        for average in self.averages.values():
            average.update(self.weights, step)
        counts = self.counts
        counts["skipped_samples"] += self.config.batch_size - samples
        counts["skipped_steps"] += left_out
        counts["in_a_row"] = (counts["in_a_row"] + 1) * left_out
        counts["most_in_a_row"] = counts["most_in_a_row"].maximum(counts["in_a_row"])
        counts["last"] = torch.where(left_out.bool(), float(step), counts["last"])
        return norm

    def clear_gradients(self) -> None:
        """Forget them, before the next backward pass."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def record(self, values: Mapping[str, Tensor]) -> None:
        """Add a step's numbers to the sums of the log.

        A step with any that is not finite, or without a sample ("samples"), adds nothing.
        """
        stacked = torch.stack([value.detach().float() for value in values.values()])
        whole = stacked.isfinite().all() & (values["samples"] > 0)
        stacked = torch.where(whole, stacked, 0.0)
        for name, value in zip(("steps", *values), (whole.float(), *stacked.unbind()), strict=True):
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self) -> dict[str, float]:
        """Means since the last call, and how many steps were left out; waits for the device."""
        names = [name for name in self.sums if name != "steps"]
        steps, *values = torch.stack([self.sums[name] for name in ("steps", *names)]).tolist()
        self.sums = {}
        if not steps:  # all of them were left out
            return {}
        return {name: value / steps for name, value in zip(names, values, strict=True)}

    def pieces(self) -> dict[str, Piece]:
        """Every tensor by name, with its place in the whole; restored by `copy_` into them."""
        return dict(self._pieces())

    def _pieces(self) -> Iterator[tuple[str, Piece]]:
        for name, parameter in self.parameters.items():
            weight = self.weights[name]
            moments = self.optimizer.state[weight]
            start = self._start(parameter)
            shape = tuple(parameter.shape)
            yield f"weight.{name}", Piece(weight, shape, start)
            yield f"first_moment.{name}", Piece(moments["exp_avg"], shape, start)
            yield f"second_moment.{name}", Piece(moments["exp_avg_sq"], shape, start)
            yield f"updates.{name}", Piece(moments["step"], ())
            for decay, average in self.averages.items():
                yield f"average.{decay}.{name}", Piece(average.tensors[name], shape, start)
        for kind, numbers in (("count", self.counts), ("sum", self.sums)):
            for name, number in numbers.items():
                yield f"{kind}.{name}", Piece(number, ())

    def _start(self, parameter: Tensor) -> int:
        """The first of this process's rows: FSDP cuts the first axis as `torch.chunk` does."""
        if not isinstance(parameter, DTensor):
            return 0
        assert self.world.mesh is not None
        assert isinstance(parameter.placements[-1], Shard)
        parts = self.world.mesh["shard"].size()
        return min(self.world.place("shard") * -(-parameter.shape[0] // parts), parameter.shape[0])

    def exported(self) -> dict[str, Tensor]:
        """What a run exports: the first average, or the weights where the recipe averages none."""
        return self.whole(next(iter(self.averages), None))

    def whole(self, decay: float | None = None) -> dict[str, Tensor]:
        """The trained tensors, or an average of them, whole and on the CPU, on every process."""
        source = self.weights if decay is None else self.averages[decay].tensors
        found = {}
        for name, parameter in self.parameters.items():
            tensor = source[name]
            if isinstance(parameter, DTensor):
                tensor = DTensor.from_local(
                    tensor,
                    parameter.device_mesh,
                    parameter.placements,
                    run_check=False,
                    shape=parameter.shape,
                    stride=parameter.stride(),
                ).full_tensor()
            found[name] = tensor.detach().to("cpu", copy=True)
        return found


def _local(tensor: Tensor) -> Tensor:
    """The rows that lie here, sharing memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
