"""Pictures and captions as data sets hold them, made usable or refused with the reason."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modalign.data.permutation import key
from modalign.errors import SampleError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64_000_000  # a decoded RGB picture of this size takes 192 MB
MIN_SIDE = 8  # below this there is nothing to see for any encoder

Background = Literal["black", "white"]


def picture(source: bytes | Path, identifier: str, background: Background = "black") -> Image:
    """An upright RGB picture, decoded in full.

    The first frame of an animation; 16 bits are scaled to 8; what is transparent shows
    `background`, which is black where TRELLIS and its kind were trained.

    Raises:
        SampleError: it is missing, truncated, damaged, no picture, or of a senseless size.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata and of sizes, which are judged here.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
                width, height = opened.size
                if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
                    raise SampleError(
                        identifier,
                        f"the picture is {width}x{height}; expected at least "
                        f"{MIN_SIDE}x{MIN_SIDE} and at most {MAX_PIXELS:,} pixels",
                    )
                return upright_rgb(opened, background)
    except SampleError:
        raise
    except FileNotFoundError as error:
        raise SampleError(identifier, "the picture is missing") from error
    except UnidentifiedImageError as error:
        empty = isinstance(source, bytes) and not source
        said = "the picture is empty" if empty else "the bytes are no picture that can be read"
        raise SampleError(identifier, said) from error
    # Decoders of damaged bytes raise what they like, from OSError to struct.error.
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise SampleError(identifier, f"the picture is damaged: {said}") from error


def upright_rgb(image: Image, background: Background = "black") -> Image:
    """RGB, turned as its EXIF says; transparency shows `background`; 16 bits become 8."""
    import numpy as np
    from PIL import Image as images
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255 and would show most of such a picture white.
        image = images.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        cut = image.convert("RGBA")
        return images.alpha_composite(images.new("RGBA", cut.size, background), cut).convert("RGB")
    return image.convert("RGB")


def caption(text: object, identifier: str) -> str:
    """The text without space around it.

    Raises:
        SampleError: it is missing, empty, no text, or not UTF-8.
    """
    if text is None:
        raise SampleError(identifier, "the caption is missing")
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise SampleError(identifier, "the caption is not UTF-8") from error
    if not isinstance(text, str):
        raise SampleError(identifier, f"the caption is a {type(text).__name__}, not text")
    if not text.strip():
        raise SampleError(identifier, "the caption is empty")
    return text.strip()


def drawn(
    captions: object,
    identifier: str,
    *,
    seed: int,
    index: int,
    epoch: int,
) -> str:
    """One of a list of captions, each equally likely, or the only one there is.

    The draw follows from seed, index and epoch.

    Raises:
        SampleError: there is none, or the one drawn is unusable.
    """
    if isinstance(captions, list | tuple):
        chosen = captions[key(seed, index, epoch) % len(captions)] if captions else None
        return caption(chosen, identifier)
    return caption(captions, identifier)
