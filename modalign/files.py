"""What the command reads and writes: pictures that people hand it, and assets with a preview."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modalign.data.pictures import MAX_PIXELS, MIN_SIDE, upright_rgb
from modalign.errors import OutputError, PromptError

if TYPE_CHECKING:
    from PIL.Image import Image

    from modalign.specs import Asset, ProgressCallback


def read_image(path: Path) -> Image:
    """An upright RGB picture of sane size, its first frame if it is animated.

    What is transparent becomes black, as in the pictures generators were trained on; 16 bits are
    scaled to 8.

    Raises:
        PromptError: it cannot be read, or its size makes no sense as a prompt.
    """
    return _read(path, upright_rgb)


def read_picture(path: Path) -> Image:
    """An upright picture of sane size as it was stored, with its transparency.

    Raises:
        PromptError: it cannot be read, is animated, or its size makes no sense.
    """
    from PIL import ImageOps

    return _read(path, ImageOps.exif_transpose, frames=1)


def _read(path: Path, finish: Callable[[Image], Image], frames: int | None = None) -> Image:
    """What `finish` makes of the opened picture."""
    from PIL import Image, UnidentifiedImageError

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
                return finish(opened)
    except UnidentifiedImageError as error:
        raise PromptError(f"image {path} is not a picture that can be read") from error
    except Image.DecompressionBombError as error:
        raise PromptError(
            f"image {path} is too large; expected at most {MAX_PIXELS:,} pixels; resize it"
        ) from error
    except PromptError:
        raise
    # Decoders of damaged bytes raise what they like; that of AVIF a RuntimeError.
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise PromptError(f"image {path} is damaged: {said}") from error


def _check_size(path: Path, width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
        raise PromptError(
            f"image {path} is {width}x{height}; expected at least {MIN_SIDE}x{MIN_SIDE} "
            f"and at most {MAX_PIXELS:,} pixels; resize it"
        )


def output_paths(
    output: Path | None, num_samples: int, inputs: Iterable[Path] = (), *, produces: str = "mesh"
) -> list[Path]:
    """Where each asset goes: `output` itself, or numbered siblings of it for several.

    `produces` is what the generator makes; None as `output` stands for "output" with the first
    extension of that. What lies beside an asset is in `beside`.

    Raises:
        OutputError: the extension is not one of what is made, the folder cannot be written, or an
            asset or a file beside it would take the place of one of `inputs`, or one beside it
            that of a file that does not belong to the asset.
    """
    from modalign.assets import FORMATS

    known = FORMATS.get(produces)  # None for what a plugin of others makes: it judges names itself
    if output is None and known is None:
        raise OutputError(f"say where to write the {produces}: --output NAME")
    output = output or Path("output").with_suffix((known or ("",))[0])
    if known is not None and output.suffix.lower() not in known:
        raise OutputError(
            f"cannot write {output.name!r}: unknown extension {output.suffix!r} for "
            f"{produces!r}; use one of {', '.join(known)}"
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
        for path in beside(target, produces):
            if path.resolve() in taken or (path.exists() and not target.exists()):
                raise OutputError(
                    f"cannot write {path} beside {target.name}: it exists and is not of it; "
                    "choose another output name"
                )
    return targets


def preview_path(target: Path) -> Path | None:
    """The PNG of the same stem beside an asset; None where the asset is itself a picture."""
    from modalign.assets import FORMATS

    return None if target.suffix.lower() in FORMATS["picture"] else target.with_suffix(".png")


def beside(target: Path, produces: str) -> list[Path]:
    """The files beside an asset: its preview, then an OBJ's material and texture."""
    from modalign.assets.textured import obj_parts

    preview = preview_path(target)
    files = [] if preview is None else [preview]
    if produces == "textured-mesh" and target.suffix.lower() == ".obj":
        files += obj_parts(target)
    return files


def turntable_paths(
    film: Path | None, targets: Sequence[Path], inputs: Iterable[Path] = (), *, produces: str
) -> list[Path]:
    """Where the film of each asset goes: `film` itself, or numbered siblings of it for several.

    Raises:
        OutputError: there is nothing to turn, the extension is unknown, the folder is another than
            the assets', or the film would take the place of an asset, a preview or an input.
    """
    from modalign.assets.turntable import check_turntable

    if film is None:
        return []
    if produces == "picture":
        raise OutputError("a picture has no other side to turn to; leave --turntable out")
    try:
        check_turntable(film)
    except ValueError as error:
        raise OutputError(str(error)) from error
    if film.parent.resolve() != targets[0].parent.resolve():
        raise OutputError(f"cannot write {film}: a turntable lies beside {targets[0].name}")
    films = [film]
    if len(targets) > 1:
        films = [film.with_stem(f"{film.stem}-{k}") for k in range(len(targets))]
    taken = {path.resolve() for path in (*inputs, *targets)}
    taken |= {path.resolve() for target in targets for path in beside(target, produces)}
    for path in films:
        if path.resolve() in taken or path.is_dir():
            raise OutputError(f"cannot write the turntable {path}: the name is taken by another")
    return films


def save_all(
    assets: Sequence[Asset],
    targets: Sequence[Path],
    films: Sequence[Path] = (),
    progress: ProgressCallback | None = None,
) -> None:
    """Every asset with what lies beside it and, where `films` are named, its turntable.

    All files are written aside first, so a full disk leaves nothing.

    Raises:
        OutputError: the disk refused, or an asset cannot be seen from other sides.
    """
    from modalign.assets.turntable import write_turntable
    from modalign.assets.viewing import Viewable

    folder = targets[0].parent
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".modalign-") as aside:
            for asset, target in zip(assets, targets, strict=True):
                asset.save(Path(aside) / target.name)
                if (preview := preview_path(target)) is not None:
                    asset.preview(Path(aside) / preview.name)
            for asset, film in zip(assets, films, strict=False):
                if not isinstance(asset, Viewable):
                    raise OutputError(f"cannot write {film.name}: what was made cannot be turned")
                write_turntable(asset, Path(aside) / film.name, progress=progress)
            for written in sorted(Path(aside).iterdir()):
                written.replace(folder / written.name)
    except OSError as error:
        raise OutputError(
            f"cannot write {targets[0].name} into {str(folder)!r}: {error.strerror or error}"
        ) from error
