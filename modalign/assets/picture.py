"""RGB pictures."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modalign.assets.writing import check_suffix, write_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    Floats = NDArray[np.float32]

JPEG_QUALITY = 95  # Pillow's 75 shows blocks in smooth areas


@dataclass(frozen=True, eq=False)
class Picture:
    """An RGB picture.

    Attributes:
        pixels: (H, W, 3) uint8 as displayed (sRGB), rows from the top.

    Raises:
        ValueError: the array has another shape or type.
    """

    pixels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        pixels = np.ascontiguousarray(self.pixels)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise ValueError(
                f"pixels must be (H, W, 3) of uint8, got {pixels.shape} of {pixels.dtype}"
            )
        object.__setattr__(self, "pixels", pixels)

    @classmethod
    def from_unit(cls, values: Floats) -> Picture:
        """The picture of values (H, W, 3) in 0..1; what lies outside is clipped.

        Raises:
            ValueError: the shape is another, or a value is not finite.
        """
        if not np.isfinite(values).all():
            raise ValueError("pixels hold numbers that are not finite")
        return cls(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8))

    @property
    def image(self) -> Image:
        """The same as a Pillow image."""
        from PIL import Image

        return Image.fromarray(self.pixels)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write PNG, JPEG or WebP, whole or not at all; PNG and WebP lose nothing.

        Raises:
            ValueError: the extension is unknown.
            OSError: the file cannot be written.
        """
        path = Path(path)
        check_suffix(path, "picture")
        options: dict[str, tuple[str, dict[str, Any]]] = {
            ".png": ("PNG", {}),
            ".webp": ("WEBP", {"lossless": True}),
        }
        name, how = options.get(path.suffix.lower(), ("JPEG", {"quality": JPEG_QUALITY}))
        buffer = io.BytesIO()
        self.image.save(buffer, format=name, **how)
        write_whole(path, buffer.getvalue())

    def preview(self, path: str | os.PathLike[str]) -> None:
        """Write the picture as PNG, whatever the extension.

        Raises:
            OSError: the file cannot be written.
        """
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG")
        write_whole(Path(path), buffer.getvalue())
