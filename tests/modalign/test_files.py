"""Pictures from anywhere, read or refused through the real command."""

from __future__ import annotations

import struct
import sys
import zlib
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from modalign import OutputError, Picture, PromptError, cli
from modalign.files import output_paths, read_image, read_picture, save_all, turntable_paths
from modalign.specs import Progress


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds no pixels."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + size, b"IDAT" + zlib.compress(b""), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def truncated() -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    return buffer.getvalue()[:800]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (png_header(0, 0), "image "),
        (png_header(1, 1), "is 1x1; expected at least 8x8"),
        (png_header(20_000, 20_000), "64,000,000 pixels; resize it"),
        (png_header(10_000, 10_000), "is 10000x10000; expected"),
        (truncated(), "is damaged"),
        (b"", "is not a picture"),
        (b"GIF89a", "image "),
        (b"a text about a mug", "is not a picture"),
    ],
    ids=["0x0", "1x1", "20000x20000", "10000x10000", "truncated", "empty", "cut GIF", "text"],
)
def test_unusable_pictures_are_refused_in_one_line(
    content: bytes,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["modalign", "generate", "this, in red", "--image", str(picture)]
    )
    with pytest.raises(SystemExit) as done:
        cli.main()
    printed = capsys.readouterr()
    assert (done.value.code, printed.out) == (2, "")
    assert printed.err.startswith(f"error: image {picture}")
    assert complaint in printed.err
    assert printed.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_missing_picture_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(PromptError, match="no image at"):
            read_image(path)


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "expected"),
    [
        ("CMYK", (0, 255, 255, 0), ".jpg", (254, 0, 0)),
        ("CMYK", (0, 255, 255, 0), ".tif", (255, 0, 0)),
        ("L", 200, ".png", (200, 200, 200)),
        ("1", 1, ".png", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), ".png", (0, 0, 0)),
        ("LA", (255, 128), ".png", (128, 128, 128)),
        ("I;16", 65535, ".png", (255, 255, 255)),
        ("I;16", 32896, ".png", (128, 128, 128)),  # 128 / 255 of white, not clipped to white
        ("I;16", 255, ".png", (1, 1, 1)),
    ],
)
def test_every_colour_mode_becomes_rgb(
    mode: str, color: object, suffix: str, expected: tuple[int, int, int], tmp_path: Path
) -> None:
    path = tmp_path / f"picture{suffix}"
    Image.new(mode, (16, 16), color).save(path)  # type: ignore[arg-type]
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.getpixel((8, 8)) == pytest.approx(expected, abs=1)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "picture.gif"
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=10)
    assert read_image(path).getpixel((8, 8)) == (255, 0, 0)


def test_a_picture_that_lies_on_its_side_is_set_upright(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    Image.new("RGB", (32, 16)).save(path, exif=exif)
    assert read_image(path).size == (16, 32)


def folder_of(tmp_path: Path, num_samples: int = 1) -> list[Path]:
    return output_paths(tmp_path / "x.glb", num_samples)


def test_films_lie_beside_their_assets(tmp_path: Path) -> None:
    assert turntable_paths(None, folder_of(tmp_path), produces="mesh") == []
    film = tmp_path / "x.gif"
    assert turntable_paths(film, folder_of(tmp_path), produces="mesh") == [film]
    several = turntable_paths(film, folder_of(tmp_path, 2), produces="mesh")
    assert [path.name for path in several] == ["x-0.gif", "x-1.gif"]


@pytest.mark.parametrize(
    ("name", "produces", "complaint"),
    [
        ("x.gif", "picture", "a picture has no other side to turn to"),
        ("x.avi", "mesh", "unknown extension '.avi' of a turntable"),
        ("x.png", "mesh", "the name is taken by another"),  # by the preview
        ("in.webp", "mesh", "the name is taken by another"),  # by an input
        ("other/x.gif", "mesh", "a turntable lies beside x.glb"),
    ],
)
def test_films_that_have_no_place_are_refused(
    name: str, produces: str, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=complaint):
        turntable_paths(
            tmp_path / name, folder_of(tmp_path), [tmp_path / "in.webp"], produces=produces
        )


def test_an_asset_is_saved_with_its_preview_and_its_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from modalign import Mesh
    from modalign.assets import turntable

    short = partial(turntable.write_turntable, frames=3, size=16)
    monkeypatch.setattr(turntable, "write_turntable", short)
    triangle = Mesh(0.3 * np.eye(3), np.array([[0, 1, 2]]), np.eye(3))
    seen: list[Progress] = []
    save_all([triangle], [tmp_path / "x.glb"], [tmp_path / "x.gif"], seen.append)
    assert {path.name for path in tmp_path.iterdir()} == {"x.glb", "x.png", "x.gif"}
    assert (seen[-1].stage, seen[-1].step, seen[-1].total) == ("turntable", 3, 3)
    flat = Picture(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(OutputError, match=r"y.gif: what was made cannot be turned"):
        save_all([flat], [tmp_path / "y.png"], [tmp_path / "y.gif"])
    assert len(list(tmp_path.iterdir())) == 3


def test_the_command_refuses_a_film_before_it_loads_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("modalign.assembly.build", None)
    monkeypatch.setattr(sys, "argv", ["modalign", "generate", "a mug", "--turntable", "mug.avi"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "known: .gif, .webp, .png, .mp4" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError("Failed to decode image"), struct.error("")])
def test_whatever_a_decoder_raises_a_damaged_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Pillow's decoder of AVIF raises RuntimeError at damaged bytes; EXIF may raise others."""

    def fail(self: Image.Image) -> None:
        raise error

    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    for read in (read_image, read_picture):
        with pytest.raises(PromptError, match=f"is damaged: {error or 'error'}"):
            read(tmp_path / "a.png")
