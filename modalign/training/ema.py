"""Exponential moving average of trained tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class EMA:
    """An average of tensors over steps: a <- decay a + (1 - decay) x, kept in float32.

    Starts at the values it is given. `tensors` is what a checkpoint stores and restores.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        """`decay` in (0, 1); averages about 1 / (1 - decay) steps."""
        self.decay = decay
        self.tensors = {name: tensor.detach().float().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int | None = None) -> None:
        """Take the values after a step; the same names as at the start.

        With the number of the step, from 1, the memory is shorter at first, (1 + n) / (10 + n) at
        most, so that a short run is not its own start. Source: the `num_updates` of TensorFlow's
        ExponentialMovingAverage.
        """
        decay = self.decay if step is None else min(self.decay, (1 + step) / (10 + step))
        averages = [self.tensors[name] for name in tensors]
        values = [tensor.detach().float() for tensor in tensors.values()]
        torch._foreach_lerp_(averages, values, 1 - decay)

    @contextmanager
    def applied(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the block `tensors` hold the average; afterwards their own values again."""
        own = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._fill(tensors, self.tensors)
        try:
            yield
        finally:
            self._fill(tensors, own)

    @staticmethod
    @torch.no_grad()
    def _fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
