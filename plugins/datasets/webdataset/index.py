"""The index of a tar: where the picture and the caption of each sample lie.

Made once and kept as a plain array beside the tar, or in a folder of the user's, and made again
when the tar's size or time has changed. It is mapped, not loaded: memory does not grow with it.
"""

import hashlib
import io
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modalign import ModalignError
from modalign.assets import write_whole

from .scan import scan

PICTURES = ("jpg", "jpeg", "png", "webp")
NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # a sample's key ends at the first dot
VERSION = 1


class TarIndex(NamedTuple):
    """`rows` is an array file with a row per sample; `problems` what is wrong with the tar."""

    tar: Path
    rows: Path
    samples: int
    stamp: tuple[int, int]
    problems: tuple[str, ...]

    def load(self) -> NDArray[np.void]:
        """The rows: key, place of the picture, place of the caption, and whether that is JSON."""
        rows: NDArray[np.void] = np.load(self.rows, mmap_mode="r", allow_pickle=False)
        return rows


def indexed(tars: list[Path], folder: Path | None, threads: int) -> list[TarIndex]:
    """The index of every tar, made by `threads` at once where it is not there or out of date.

    Raises:
        ModalignError: a tar cannot be read, or its index not written.
    """
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(partial(_indexed, folder=folder), tars))


def stamp(status: os.stat_result) -> tuple[int, int]:
    """What changes when a file does."""
    return status.st_size, status.st_mtime_ns


def _indexed(tar: Path, folder: Path | None) -> TarIndex:
    try:
        now = stamp(tar.stat())
    except OSError as error:
        raise ModalignError(f"cannot read {tar}: {error.strerror}") from error
    home = tar.parent
    name = tar.name
    if folder is not None:
        home = folder
        name += "." + hashlib.blake2b(str(tar.resolve()).encode(), digest_size=4).hexdigest()
    rows, said = home / f"{name}.index.npy", home / f"{name}.index.json"
    try:
        found = json.loads(said.read_bytes())
        if found["version"] == VERSION and tuple(found["stamp"]) == now:
            known = TarIndex(tar, rows, found["samples"], now, tuple(found["problems"]))
            if len(known.load()) == known.samples:
                return known
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, half copied, or of another version: it is made below
    try:
        array, problems = _rows(tar)
    except OSError as error:
        raise ModalignError(f"cannot read {tar}: {error.strerror}") from error
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content: dict[str, Any] = {"version": VERSION, "stamp": now, "samples": len(array)}
    content["problems"] = problems
    try:
        home.mkdir(parents=True, exist_ok=True)
        write_whole(rows, buffer.getvalue())
        write_whole(said, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise ModalignError(
            f"cannot write the index of {tar.name} into {home}: {error.strerror}; "
            "name another folder with index=FOLDER"
        ) from error
    return TarIndex(tar, rows, len(array), now, tuple(problems))


def _rows(tar: Path) -> tuple[NDArray[np.void], list[str]]:
    members, problems = scan(tar)
    places: dict[str, dict[str, Any]] = {}
    for member in members:
        match = NAME.fullmatch(member.name)
        if match is None:
            continue
        key, extension = match[1], match[2].lower()
        role = "picture" if extension in PICTURES else extension
        if role not in ("picture", "txt", "json"):
            continue
        sample = places.setdefault(key, {})
        if role in sample:
            problems.append(f"{member.name} is there twice, or beside another picture")
            continue
        sample[role] = member
    width = max((len(key.encode()) for key in places), default=1)
    array = np.zeros(
        len(places),
        [
            ("key", f"S{width}"),
            ("picture", "<i8"),
            ("picture_size", "<i8"),
            ("caption", "<i8"),
            ("caption_size", "<i8"),
            ("is_json", "?"),
        ],
    )
    array["picture"] = array["caption"] = -1
    for row, (key, sample) in enumerate(places.items()):
        array["key"][row] = key.encode()
        if "picture" in sample:
            array["picture"][row] = sample["picture"].offset
            array["picture_size"][row] = sample["picture"].size
        # Beside a caption as text, JSON holds what else is known of the sample.
        caption = sample.get("txt") or sample.get("json")
        if caption:
            array["caption"][row], array["caption_size"][row] = caption.offset, caption.size
            array["is_json"][row] = "txt" not in sample
    return array, problems
