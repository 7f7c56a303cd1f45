"""A picture as TRELLIS's image encoder wants it: the object alone, square, centred, on black."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from modalign import ModalignError, PromptError

OPAQUE = 0.8 * 255  # alpha above which a pixel belongs to the object
MARGIN = 1.2  # side of the crop over the longer side of the object
LONGEST = 1024  # longer side at which a background is removed
REMOVAL_NETWORK = "u2net"  # of the reference; rembg fetches it, 176 MB
WITHOUT_ALPHA = ("CMYK", "YCbCr", "LAB", "HSV")
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def object_picture(
    image: Image.Image, size: int, margin: float = MARGIN, longest: int | None = None
) -> Image.Image:
    """An RGB picture (size, size) of the object in any picture, on black.

    Where a pixel is transparent, transparency says what the object is. Otherwise the background
    is removed by rembg, at a longer side of at most 1024.

    Args:
        image: any picture.
        size: side of the result.
        margin: side of the crop over the longer side of the object.
        longest: longer side to which every picture is shrunk first; as it is if None.

    Raises:
        PromptError: the picture is animated, or nothing in it is opaque.
        ModalignError: the background must be removed, and rembg is not installed or fails.
    """
    picture = with_alpha(image)
    if longest is not None:
        picture = shrunk(picture, longest)
    if picture.getextrema()[3][0] == 255:
        picture = without_background(picture.convert("RGB"))
    return crop_to_object(picture, size, margin)


def shrunk(picture: Image.Image, longest: int) -> Image.Image:
    """The picture with a longer side of at most `longest`."""
    scale = longest / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, int(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def with_alpha(image: Image.Image) -> Image.Image:
    """The same picture as RGBA: of a palette, greyscale, or with 16 bits.

    Raises:
        PromptError: it is animated, or of numbers without a scale.
    """
    frames = getattr(image, "n_frames", 1)
    # Cameras put further pictures behind a JPEG's own: a depth or gain map, the other eye.
    if frames > 1 and image.format != "MPO":
        raise PromptError(f"the picture is animated ({frames} frames); give one frame of it")
    if image.mode == "F":
        raise PromptError(
            "the picture holds floating-point numbers, whose white is unknown; save it with 8 or "
            "16 bits per channel"
        )
    if image.mode in SIXTEEN_BIT:  # Pillow's own conversion cuts them off at 255
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in WITHOUT_ALPHA:  # Pillow converts these to RGB alone
        image = image.convert("RGB")
    return image.convert("RGBA")


def without_background(picture: Image.Image) -> Image.Image:
    """The RGB picture as RGBA, its background transparent; at most 1024 along its longer side.

    Raises:
        ModalignError: rembg is not installed, or its network cannot be fetched or run.
    """
    try:
        import rembg
    except ImportError as error:
        raise ModalignError(
            "the picture has no transparent background, and removing one needs rembg: "
            "pip install modalign[background], or give a PNG whose background is transparent"
        ) from error
    picture = shrunk(picture, LONGEST)
    try:
        removed: Any = rembg.remove(picture, session=rembg.new_session(REMOVAL_NETWORK))
    except Exception as error:  # onnxruntime and the download raise many kinds
        raise ModalignError(
            f"rembg could not remove the background ({type(error).__name__}: {error}); give a PNG "
            "whose background is transparent"
        ) from error
    cut: Image.Image = removed.convert("RGBA")
    return cut


def crop_to_object(image: Image.Image, size: int, margin: float = MARGIN) -> Image.Image:
    """An RGB picture (size, size) of an RGBA picture's object, premultiplied on black.

    Raises:
        PromptError: the picture has no alpha channel, nothing in it is opaque, or one pixel.
    """
    if image.mode != "RGBA":
        raise PromptError(f"need a picture with an alpha channel (RGBA), got {image.mode}")
    opaque = np.argwhere(np.asarray(image)[:, :, 3] > OPAQUE)
    if len(opaque) == 0:
        raise PromptError("no pixel of the picture is opaque: there is no object to crop to")
    (top, left), (bottom, right) = opaque.min(axis=0), opaque.max(axis=0)
    centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
    half = int(max(right - left, bottom - top) * margin) // 2
    if half == 0:
        raise PromptError(
            f"the object in the picture is {right - left + 1} x {bottom - top + 1} pixels; there "
            "is nothing to see"
        )
    box = (centre_x - half, centre_y - half, centre_x + half, centre_y + half)
    square = image.crop(tuple(float(side) for side in box))  # type: ignore[arg-type]
    square = square.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(square).astype(np.float32) / 255
    premultiplied = pixels[:, :, :3] * pixels[:, :, 3:]
    return Image.fromarray((premultiplied * 255).astype(np.uint8))
