"""Writing assets: formats by what a generator produces, and files that are whole or not there."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

# By what a generator says it produces.
FORMATS = {
    "mesh": (".glb", ".ply", ".obj"),
    "textured-mesh": (".glb", ".obj"),  # PLY has no textures
    "gaussians": (".ply", ".splat"),
    "radiance-field": (".safetensors",),
    "picture": (".png", ".jpg", ".jpeg", ".webp"),
}


def check_suffix(path: Path, produced: str) -> None:
    """Refuse an extension that what was produced has no format for.

    Raises:
        ValueError: names those that it has.
    """
    if path.suffix.lower() not in FORMATS[produced]:
        raise ValueError(
            f"cannot save {path.name!r}: unknown extension {path.suffix!r}; "
            f"known: {', '.join(FORMATS[produced])}"
        )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(unfinished, "xb") as file:
            file.write(content)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
