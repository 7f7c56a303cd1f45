"""What the pictures of all assets in space share."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from modalign.assets.writing import write_whole
from modalign.rendering.cameras import Camera, around

if TYPE_CHECKING:
    from numpy.typing import NDArray

Background = float | Sequence[float]
"""A grey, or RGB; in 0..1, as displayed."""


@runtime_checkable
class Viewable(Protocol):
    """An asset that can be looked at from any side."""

    def render(
        self,
        views: int = 4,
        size: int = 256,
        *,
        cameras: Sequence[Camera] | None = None,
        background: Background = 1.0,
    ) -> NDArray[np.uint8]:
        """Pictures (V, size, size, 3): from `cameras`, or from `views` evenly spaced sides."""
        ...


def cameras_for(views: int, size: int, cameras: Sequence[Camera] | None) -> Sequence[Camera]:
    """`cameras` if given, else `views` around the object as in the paper's snapshots.

    Raises:
        ValueError: there would be no picture.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if cameras is None and views < 1:
        raise ValueError(f"views must be at least 1, got {views}")
    return around(views) if cameras is None else cameras


def backdrop(background: Background) -> NDArray[np.float64]:
    """RGB (3,) of a background.

    Raises:
        ValueError: it is neither a grey nor RGB in 0..1.
    """
    color = np.asarray(background, dtype=np.float64)
    if color.shape not in ((), (3,)) or not ((color >= 0) & (color <= 1)).all():
        raise ValueError(f"background must be a grey or RGB in 0..1, got {background!r}")
    return np.broadcast_to(color, (3,))


def as_pixels(pictures: Iterable[NDArray[np.float64]], size: int) -> NDArray[np.uint8]:
    """Pixels (V, size, size, 3) of pictures in 0..1; finer ones are averaged, brighter clipped."""
    found = list(pictures)
    if not found:
        return np.zeros((0, size, size, 3), dtype=np.uint8)
    fine = np.stack(found)
    times = fine.shape[1] // size
    if times > 1:
        fine = fine.reshape(len(fine), size, times, size, times, 3).mean(axis=(2, 4))
    pixels: NDArray[np.uint8] = np.rint(fine.clip(0, 1) * 255).astype(np.uint8)
    return pixels


def write_preview(asset: Viewable, path: str | os.PathLike[str]) -> None:
    """Write a PNG of four views side by side.

    Raises:
        OSError: the file cannot be written.
    """
    from PIL import Image

    strip = np.concatenate(list(asset.render()), axis=1)
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, format="PNG")
    write_whole(Path(path), buffer.getvalue())
