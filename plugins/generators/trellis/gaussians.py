"""The released Gaussian head: raw features to splats.

Legend: N voxels, G Gaussians per voxel.
"""

from __future__ import annotations

import torch
from torch import Tensor

PRIMES = (2, 3, 5, 7, 11)


def hammersley(number: int, dims: int) -> Tensor:
    """`number` evenly spread points (number, dims) in the unit cube.

    The first coordinate is i / number, the others radical inverses of i in the prime bases.
    """
    columns = [[i / number for i in range(number)]]
    columns += [[_radical_inverse(i, base) for i in range(number)] for base in PRIMES[: dims - 1]]
    return torch.tensor(columns, dtype=torch.float32).T


def _radical_inverse(i: int, base: int) -> float:
    """The digits of i in a base, mirrored at the point."""
    value, place = 0.0, 1 / base
    while i:
        i, digit = divmod(i, base)
        value += digit * place
        place /= base
    return value
