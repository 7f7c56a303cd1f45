"""Any picture becomes upright RGB, or says why not; the expected pixels are those put in."""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modalign import SampleError
from modalign.data import caption, drawn, picture

RED, BLUE = (200, 30, 40), (10, 60, 220)
NOISE = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (100, 100, 3)).astype(np.uint8)  # 30 kB in any format
)


def halves(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def colour(image: Image.Image, x: int, y: int) -> np.ndarray:
    return np.asarray(image)[y, x].astype(int)


@pytest.mark.parametrize(
    ("content", "tolerance"),
    [
        (encoded(halves()), 0),
        (encoded(halves(), "JPEG", quality=95, subsampling=0), 6),
        (encoded(halves(), "WEBP", lossless=True), 0),
        (encoded(halves("P")), 60),  # a palette of 6x6x6 colours
        (encoded(halves("RGBA")), 0),
        (encoded(halves("CMYK"), "JPEG", quality=95), 6),
        (encoded(halves(), "PNG", save_all=True, append_images=[Image.new("RGB", (24, 16))]), 0),
    ],
    ids=["png", "jpeg", "webp", "palette", "rgba", "cmyk", "animated"],
)
def test_every_mode_shows_its_colours(content: bytes, tolerance: int) -> None:
    image = picture(content, "x")
    assert (image.mode, image.size) == ("RGB", (24, 16))
    assert np.abs(colour(image, 3, 8) - RED).max() <= tolerance
    assert np.abs(colour(image, 20, 8) - BLUE).max() <= tolerance


def test_a_turned_picture_is_set_upright() -> None:
    """EXIF orientation 6: the camera was turned; what was on the left belongs to the top."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture(encoded(halves(), "JPEG", quality=95, exif=exif), "x")
    assert image.size == (16, 24)
    assert colour(image, 8, 3)[0] > 150
    assert colour(image, 8, 20)[2] > 150


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    """257 steps of 65535 are one of 255."""
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)
    image = picture(encoded(Image.fromarray(np.tile(ramp, (16, 1)))), "x")
    assert (np.asarray(image)[0, :, 0] == np.arange(256)).all()


@pytest.mark.parametrize(("background", "level"), [("black", 0), ("white", 255)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_the_background(background: Any, level: int, mode: str) -> None:
    if mode == "P":
        image = Image.new("P", (16, 16), 0)
        image.putpalette([90, 90, 90, 1, 1, 1])
        content = encoded(image, transparency=0)
    else:
        content = encoded(Image.new(mode, (16, 16), (90, 0) if mode == "LA" else (90, 90, 90, 0)))
    assert (np.asarray(picture(content, "x", background)) == level).all()


def half_transparent(background: Any) -> int:
    content = encoded(Image.new("RGBA", (16, 16), (100, 100, 100, 128)))
    return int(np.asarray(picture(content, "x", background))[0, 0, 0])


def test_half_transparent_pixels_are_mixed() -> None:
    """128/255 of 100 over 0 and over 255."""
    assert abs(half_transparent("black") - 100 * 128 / 255) <= 1
    assert abs(half_transparent("white") - (100 * 128 + 255 * 127) / 255) <= 1


def bomb() -> bytes:
    """A PNG header that promises 60,000 x 60,000 pixels."""
    content = bytearray(encoded(halves()))
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "no picture that can be read"),
        (encoded(halves(size=(200, 200)), "JPEG")[:900], "damaged"),
        (encoded(halves(size=(200, 200)))[:120], "damaged"),
        (encoded(NOISE, "WEBP", lossless=True)[:9000], "damaged"),
        (encoded(halves(size=(4, 100))), "4x100"),
        (bomb(), "60000x60000|too large|damaged"),
    ],
    ids=["empty", "html", "jpeg", "png", "webp", "thin", "bomb"],
)
def test_what_cannot_be_shown_says_why(content: bytes, reason: str) -> None:
    with pytest.raises(SampleError, match=f"^a.tar/7: .*({reason})") as refused:
        picture(content, "a.tar/7")
    assert "\n" not in str(refused.value)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="the picture is missing"):
        picture(tmp_path / "none.png", "x")


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "missing"), ("  \n", "empty"), (b"\xff\xfe", "UTF-8"), (7, "a int, not text")],
)
def test_a_caption_that_is_none_says_why(text: Any, reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        caption(text, "x")
    assert caption(b" a red mug\n", "x") == "a red mug"


def test_captions_are_drawn_by_seed_index_and_epoch_equally_often() -> None:
    """Chi-squared of 4 captions over 4000 draws: 3 expected, 16.3 at one in a thousand."""
    captions = ["a", "b", "c", "d"]

    def draw(seed: int, index: int, epoch: int) -> str:
        return drawn(captions, "x", seed=seed, index=index, epoch=epoch)

    for found in (
        [draw(0, 5, epoch) for epoch in range(4000)],
        [draw(0, index, 2) for index in range(4000)],
        [draw(seed, 5, 2) for seed in range(4000)],
    ):
        counts = Counter(found)
        assert sum((counts[name] - 1000) ** 2 / 1000 for name in captions) < 16.3
    assert draw(1, 2, 3) == draw(1, 2, 3)
    with pytest.raises(SampleError, match="missing"):
        drawn([], "x", seed=0, index=0, epoch=0)
