"""Pictures as models read them: a square, then normalised pixels. PIL and numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image


def centre_square(image: Image, side: int) -> Image:
    """The RGB picture with its shorter side resized to `side` (bicubic), cut to the middle.

    The same numbers as torchvision's Resize and CenterCrop on PIL images.
    """
    from PIL.Image import Resampling

    image = image.convert("RGB")
    short = min(image.size)
    width, height = (int(side * length / short) for length in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def squashed_square(image: Image, side: int, resampling: Literal["bicubic", "bilinear"]) -> Image:
    """The whole RGB picture resized to `side` by `side`, whatever its proportions."""
    from PIL.Image import Resampling

    return image.convert("RGB").resize((side, side), Resampling[resampling.upper()])


def normalised(image: Image, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Pixels (3, H, W): scaled to 0..1, minus `mean`, over `std`, each by channel."""
    values = np.asarray(image, dtype=np.float32) / 255  # (H, W, 3)
    values = (values - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))
