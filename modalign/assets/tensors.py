"""Checks of the tensors that assets are made of."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def check_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Refuse tensors of other shapes, types or devices, or with numbers that are not finite.

    Raises:
        ValueError: names the tensor, what was expected, and what it is.
    """
    first = next(iter(tensors.values()))
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise ValueError(
                f"{name} must be {shapes[name]}, one row per {what}, got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point() or tensor.dtype != first.dtype:
            raise ValueError(
                f"{name} must be floating-point, all of one type, got {tensor.dtype} "
                f"beside {first.dtype}"
            )
        if tensor.device != first.device:
            raise ValueError(f"{name} is on {tensor.device}, the others are on {first.device}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds numbers that are not finite")
