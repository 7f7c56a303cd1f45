"""What the command reads and writes: pictures that people hand it, and assets with a preview."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modalign.errors import OutputError, PromptError

if TYPE_CHECKING:
    from PIL.Image import Image

    from modalign.specs import Asset

MAX_PIXELS = 64_000_000  # a decoded RGB picture of this size takes 192 MB
MIN_SIDE = 8  # below this there is nothing to see for any encoder


def read_image(path: Path) -> Image:
    """An upright RGB picture of sane size, its first frame if it is animated.

    Raises:
        PromptError: it cannot be read, or its size makes no sense as a prompt.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise PromptError(f"no image at {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                _check_size(path, *opened.size)
                return _on_black(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise PromptError(f"image {path} is not a picture that can be read") from error
    except Image.DecompressionBombError as error:
        raise PromptError(
            f"image {path} is too large; expected at most {MAX_PIXELS:,} pixels; resize it"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise PromptError(f"image {path} is damaged: {error}") from error


def _check_size(path: Path, width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
        raise PromptError(
            f"image {path} is {width}x{height}; expected at least {MIN_SIDE}x{MIN_SIDE} "
            f"and at most {MAX_PIXELS:,} pixels; resize it"
        )


def _on_black(image: Image) -> Image:
    """RGB; what is transparent becomes black, as in the pictures generators were trained on."""
    from PIL import Image as images

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        cut = image.convert("RGBA")
        return images.alpha_composite(images.new("RGBA", cut.size, "black"), cut).convert("RGB")
    return image.convert("RGB")


def output_paths(output: Path, num_samples: int, inputs: Iterable[Path] = ()) -> list[Path]:
    """Where each asset goes: `output` itself, or numbered siblings of it for several.

    Each has its preview beside it, a PNG of the same stem.

    Raises:
        OutputError: the extension is unknown, the folder cannot be written, or a preview would
            take the place of one of `inputs` or of a picture that is no preview.
    """
    from modalign.assets import FORMATS

    if output.suffix.lower() not in FORMATS:
        raise OutputError(
            f"cannot write {output.name!r}: unknown extension {output.suffix!r}; "
            f"use one of {', '.join(FORMATS)}"
        )
    if output.is_dir():
        raise OutputError(f"cannot write {output}: it is a folder")
    folder = output.parent
    if not folder.is_dir():
        raise OutputError(
            f"cannot write {output}: folder {str(folder)!r} does not exist; create it"
        )
    try:
        # `os.access` says yes to root on a read-only disk; making a file tells.
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write into {str(folder)!r}: {error.strerror}") from error
    targets = [output]
    if num_samples > 1:
        targets = [output.with_stem(f"{output.stem}-{k}") for k in range(num_samples)]
    taken = {path.resolve() for path in inputs}
    for target in targets:
        preview = target.with_suffix(".png")
        if preview.resolve() in taken or (preview.exists() and not target.exists()):
            raise OutputError(
                f"cannot write the preview {preview}: it exists and is not a preview of "
                f"{target.name}; choose another output name"
            )
    return targets


def save_all(assets: Sequence[Asset], targets: Sequence[Path]) -> None:
    """Every asset and its preview. All are written aside first, so a full disk leaves nothing.

    Raises:
        OutputError: the disk refused.
    """
    folder = targets[0].parent
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".modalign-") as aside:
            for asset, target in zip(assets, targets, strict=True):
                asset.save(Path(aside) / target.name)
                asset.preview(Path(aside) / target.with_suffix(".png").name)
            for target in targets:
                for path in (target, target.with_suffix(".png")):
                    (Path(aside) / path.name).replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {targets[0].name} into {str(folder)!r}: {error.strerror or error}"
        ) from error
