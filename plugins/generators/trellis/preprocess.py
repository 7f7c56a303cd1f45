"""A cut-out picture as TRELLIS's image encoder wants it: square, centred, on black."""

from __future__ import annotations

import numpy as np
from PIL import Image

OPAQUE = 0.8 * 255  # alpha above which a pixel belongs to the object
MARGIN = 1.2  # side of the crop over the longer side of the object


def crop_to_object(image: Image.Image, size: int) -> Image.Image:
    """An RGB picture (size, size) of an RGBA picture's object, premultiplied on black.

    Raises:
        ValueError: the picture has no alpha channel, or nothing in it is opaque.
    """
    if image.mode != "RGBA":
        raise ValueError(f"need a picture with an alpha channel (RGBA), got {image.mode}")
    opaque = np.argwhere(np.asarray(image)[:, :, 3] > OPAQUE)
    if len(opaque) == 0:
        raise ValueError("no pixel of the picture is opaque: there is no object to crop to")
    (top, left), (bottom, right) = opaque.min(axis=0), opaque.max(axis=0)
    centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
    half = int(max(right - left, bottom - top) * MARGIN) // 2
    box = (centre_x - half, centre_y - half, centre_x + half, centre_y + half)
    square = image.crop(tuple(float(side) for side in box))  # type: ignore[arg-type]
    square = square.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(square).astype(np.float32) / 255
    premultiplied = pixels[:, :, :3] * pixels[:, :, 3:]
    return Image.fromarray((premultiplied * 255).astype(np.uint8))
