"""Where a command may compute."""

from __future__ import annotations

from modalign.errors import ModalignError


def has_cuda() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def usable(device: str) -> str:
    """`device`, if this torch can use it.

    Raises:
        ModalignError: it cannot.
    """
    import torch

    there = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    if torch.cuda.is_available():
        there.append("cuda")
    if torch.backends.mps.is_available():
        there.append("mps")
    if device not in there:
        raise ModalignError(
            f"device {device!r} is not available here; use one of: {', '.join(there)}"
        )
    return device
