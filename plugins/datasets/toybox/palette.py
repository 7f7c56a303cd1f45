"""The twelve colours of the toybox and the judge that names a colour."""

from types import MappingProxyType

import numpy as np

from .shapes import Array

# RGB in 0..1 as displayed. Far enough apart that a face in shade (0.7 of its brightness) is still
# nearest to its own name: brown is darker than any shaded orange, grey than any shaded white.
PALETTE = MappingProxyType(
    {
        "red": (0.84, 0.08, 0.10),
        "orange": (1.00, 0.50, 0.04),
        "yellow": (0.99, 0.90, 0.12),
        "green": (0.10, 0.60, 0.16),
        "cyan": (0.12, 0.86, 0.90),
        "blue": (0.10, 0.20, 0.86),
        "purple": (0.50, 0.12, 0.70),
        "pink": (1.00, 0.56, 0.76),
        "brown": (0.38, 0.21, 0.08),
        "black": (0.08, 0.08, 0.09),
        "grey": (0.44, 0.44, 0.46),
        "white": (0.97, 0.97, 0.97),
    }
)

COLORS = tuple(PALETTE)
_RGB = np.array(list(PALETTE.values()), np.float32)


def rgb(color: str) -> Array:
    """The colour's RGB (3,) in 0..1."""
    return np.array(PALETTE[color], np.float32)


def nearest_color(values: Array, darkest: float = 1.0) -> list[str]:
    """Names of the palette colours nearest to RGB values (N, 3) in 0..1.

    Args:
        values: The colours to name.
        darkest: Shading may have darkened the colours down to this factor; 1 compares as they are.
    """
    values = np.asarray(values, np.float32)[:, None, :]  # (N, 1, 3)
    factor = (values * _RGB).sum(axis=2) / np.square(_RGB).sum(axis=1)  # (N, C)
    factor = np.clip(factor, darkest, 1.0)[:, :, None]
    distance = np.square(values - factor * _RGB).sum(axis=2)
    return [COLORS[k] for k in distance.argmin(axis=1)]
