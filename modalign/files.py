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
    return _on_black(_read(path))


def read_picture(path: Path) -> Image:
    """An upright picture of sane size as it was stored, with its transparency.

    Raises:
        PromptError: it cannot be read, is animated, or its size makes no sense.
    """
    return _read(path, frames=1)


def _read(path: Path, frames: int | None = None) -> Image:
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise PromptError(f"no image at {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                _check_size(path, *opened.size)
                found = getattr(opened, "n_frames", 1)
                if frames is not None and found > frames:
                    raise PromptError(
                        f"image {path} is animated ({found} frames); give one frame of it"
                    )
                return ImageOps.exif_transpose(opened)
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


def output_paths(
    output: Path | None, num_samples: int, inputs: Iterable[Path] = (), *, produces: str = "mesh"
) -> list[Path]:
    """Where each asset goes: `output` itself, or numbered siblings of it for several.

    `produces` is what the generator makes; None as `output` stands for "output" with the first
    extension of that. A mesh has its preview beside it, see `preview_path`.

    Raises:
        OutputError: the extension is not one of what is made, the folder cannot be written, or an
            asset or preview would take the place of one of `inputs`, or a preview that of a
            picture that is no preview.
    """
    from modalign.assets import FORMATS

    known = FORMATS.get(produces)  # None for what a plugin of others makes: it judges names itself
    if output is None and known is None:
        raise OutputError(f"say where to write the {produces}: --output NAME")
    output = output or Path("output").with_suffix((known or ("",))[0])
    if known is not None and output.suffix.lower() not in known:
        raise OutputError(
            f"cannot write {output.name!r}: unknown extension {output.suffix!r} for what this "
            f"recipe makes, a {produces}; use one of {', '.join(known)}"
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
        if target.resolve() in taken:
            raise OutputError(
                f"cannot write {target}: the prompt refers to the picture of that name; choose "
                "another output name"
            )
        preview = preview_path(target)
        if preview is None:
            continue
        if preview.resolve() in taken or (preview.exists() and not target.exists()):
            raise OutputError(
                f"cannot write the preview {preview}: it exists and is not a preview of "
                f"{target.name}; choose another output name"
            )
    return targets


def preview_path(target: Path) -> Path | None:
    """The PNG of the same stem beside an asset; None where the asset is itself a picture."""
    from modalign.assets import FORMATS

    return None if target.suffix.lower() in FORMATS["picture"] else target.with_suffix(".png")


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
                if (preview := preview_path(target)) is not None:
                    asset.preview(Path(aside) / preview.name)
            for target in targets:
                for path in (target, preview_path(target)):
                    if path is not None:
                        (Path(aside) / path.name).replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {targets[0].name} into {str(folder)!r}: {error.strerror or error}"
        ) from error
