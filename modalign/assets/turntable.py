"""Films of assets that turn once, for pages and messages: they repeat without a seam."""

from __future__ import annotations

import importlib.util
import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modalign.assets.viewing import Background, Viewable
from modalign.assets.writing import write_whole
from modalign.errors import OutputError
from modalign.rendering.cameras import WHOLE_RADIUS, orbit
from modalign.specs import Progress, ProgressCallback

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

FRAMES = 120
FRAMES_PER_SECOND = 25  # GIF counts in hundredths of a second: 4 of them
TURNTABLE_FORMATS = (".gif", ".webp", ".png", ".mp4")
AT_ONCE = 8  # frames rendered by one call: what an asset prepares, it prepares for all of them


def write_turntable(
    asset: Viewable,
    path: str | os.PathLike[str],
    *,
    frames: int = FRAMES,
    size: int = 256,
    background: Background = 1.0,
    progress: ProgressCallback | None = None,
) -> None:
    """Write GIF, WebP, animated PNG or MP4, whole or not at all: one turn at 25 frames per second.

    PNG loses nothing; GIF has 256 colours for all frames together; WebP and MP4 compress. MP4
    needs `pip install modalign[video]`.

    Args:
        asset: what turns.
        path: its extension chooses the format.
        frames: of one turn.
        size: pixels on a side; even for MP4.
        background: a grey or RGB in 0..1.
        progress: called after every few frames.

    Raises:
        ValueError: the extension is unknown, or frames or size make no film.
        OutputError: MP4 was asked for without what writes it.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_turntable(path, frames=frames, size=size)
    cameras = orbit(frames, radius=WHOLE_RADIUS)
    parts = []
    for first in range(0, frames, AT_ONCE):
        some = cameras[first : first + AT_ONCE]
        parts.append(asset.render(size=size, cameras=some, background=background))
        if progress is not None:
            progress(Progress("turntable", first + len(some), frames))
    write_whole(path, _encode(np.concatenate(parts), path.suffix.lower()))


def check_turntable(path: Path, *, frames: int = FRAMES, size: int = 256) -> None:
    """Refuse at once what `write_turntable` could not write.

    Raises:
        ValueError: the extension is unknown, or frames or size make no film.
        OutputError: MP4 was asked for without what writes it.
    """
    suffix = path.suffix.lower()
    if suffix not in TURNTABLE_FORMATS:
        raise ValueError(
            f"cannot save {path.name!r}: unknown extension {path.suffix!r} of a turntable; "
            f"known: {', '.join(TURNTABLE_FORMATS)}"
        )
    if frames < 2:
        raise ValueError(f"a turntable needs at least 2 frames, got {frames}")
    if suffix != ".mp4":
        return
    if size % 2:
        raise ValueError(f"MP4 needs an even size, got {size}")
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise OutputError(
            f"cannot write {path.name!r}: MP4 needs imageio-ffmpeg; pip install modalign[video], "
            "or choose .gif, .webp or .png"
        )


def _encode(pictures: NDArray[np.uint8], suffix: str) -> bytes:
    from PIL import Image

    if suffix == ".mp4":
        return _mp4(pictures)
    images = [Image.fromarray(picture) for picture in pictures]
    how: dict[str, dict[str, Any]] = {
        ".gif": {"format": "GIF", "disposal": 1},
        ".webp": {"format": "WEBP", "quality": 90},
        ".png": {"format": "PNG"},
    }
    if suffix == ".gif":
        images = _one_palette(images)
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        save_all=True,
        append_images=images[1:],
        duration=1000 // FRAMES_PER_SECOND,
        loop=0,
        **how[suffix],
    )
    return buffer.getvalue()


def _one_palette(images: list[Image]) -> list[Image]:
    """The same with 256 colours for all, so that nothing flickers from frame to frame."""
    from PIL import Image as pillow

    some = images[:: max(1, len(images) // 8)]
    strip = pillow.fromarray(np.concatenate([np.asarray(image) for image in some]))
    palette = strip.quantize(256, method=pillow.Quantize.FASTOCTREE)
    return [image.quantize(palette=palette, dither=pillow.Dither.NONE) for image in images]


def _mp4(pictures: NDArray[np.uint8]) -> bytes:
    import imageio_ffmpeg

    size = pictures.shape[1]
    with tempfile.TemporaryDirectory(prefix="modalign-") as folder:
        path = Path(folder) / "turntable.mp4"
        writer = imageio_ffmpeg.write_frames(
            str(path), (size, size), fps=FRAMES_PER_SECOND, quality=8, macro_block_size=2
        )
        writer.send(None)
        for picture in pictures:
            writer.send(np.ascontiguousarray(picture))
        writer.close()
        return path.read_bytes()
