"""WebDataset tars as training pairs: members `KEY.jpg` and `KEY.txt`, or KEY.json, by index."""

import glob
import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any
from weakref import finalize

from modalign import DatasetSpec, Example, ModalignError, Prompt, SampleError, hookimpl
from modalign.data import Background, drawn, picture

from .index import TarIndex, indexed, stamp

OPEN_TARS = 64
MAX_MEMBER = 1 << 28  # a member beyond 256 MB is no picture, but a damaged size


class WebDataset:
    """The samples of tars, tar by tar, in the order of their members.

    Args:
        path: a tar, a folder of them, a pattern such as `/data/long/*.tar`, or several of these.
        caption_key: where the caption lies in a JSON member: a text, or a list of which one is
            drawn per epoch. A text member is taken before a JSON member.
        seed: of these draws.
        background: what transparent pictures show.
        index: a folder for the indices of the tars, which otherwise lie beside them.
        threads: which read tars that have no index yet.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        *,
        caption_key: str = "caption",
        seed: int = 0,
        background: Background = "black",
        index: str | None = None,
        threads: int = 8,
    ) -> None:
        """Tars without an index, or changed since, are read once from end to end of their headers.

        Raises:
            ValueError: there is no tar, or none with samples.
            ModalignError: a tar cannot be read, or its index not written.
        """
        tars = _tars([path] if isinstance(path, str) else path)
        self.tars = indexed(tars, None if index is None else Path(index), threads)
        self.shard_sizes = tuple(tar.samples for tar in self.tars)
        self.problems = tuple(
            f"{tar.tar}: {problem}" for tar in self.tars for problem in tar.problems
        )
        self._ends = list(accumulate(self.shard_sizes))
        if not len(self):
            raise ValueError(
                f"no sample in {len(tars)} tars, the first of them {tars[0]}; expected members "
                "KEY.jpg (or png, webp) and KEY.txt (or json)"
            )
        self.caption_key, self.seed, self.background = caption_key, seed, background

    def __len__(self) -> int:
        return self._ends[-1]

    def example(self, index: int, epoch: int = 0) -> Example:
        """Sample `index` of all tars one after the other."""
        tar, row, name = self._row(index)
        caption = self._caption(tar, row, name, index, epoch)
        content = tar.read(row["picture"], row["picture_size"], name, "picture")
        return Example(Prompt(caption), picture(content, name, self.background), identifier=name)

    def prompt_only(self, index: int, epoch: int = 0) -> Example:
        """Sample `index` without its picture, which is not read."""
        tar, row, name = self._row(index)
        return Example(Prompt(self._caption(tar, row, name, index, epoch)), identifier=name)

    def _row(self, index: int) -> tuple["_OpenTar", Any, str]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} does not exist; there are {len(self)}")
        number = bisect_right(self._ends, index)
        tar = _opened(self.tars[number])
        row = tar.rows[index - (self._ends[number] - self.shard_sizes[number])]
        path = tar.index.tar
        return tar, row, f"{path.parent.name}/{path.name}/{row['key'].decode(errors='replace')}"

    def _caption(self, tar: "_OpenTar", row: Any, name: str, index: int, epoch: int) -> str:
        content: Any = tar.read(row["caption"], row["caption_size"], name, "caption")
        if row["is_json"]:
            try:
                content = json.loads(content)
            except ValueError as error:
                raise SampleError(name, f"the JSON is damaged: {error}") from error
            if not isinstance(content, dict):
                raise SampleError(name, "the JSON is no object with a caption")
            content = content.get(self.caption_key)
        return drawn(content, name, seed=self.seed, index=index, epoch=epoch)


class _OpenTar:
    """A tar held open: `rows` of its index, and reads at a place, which threads may share."""

    def __init__(self, index: TarIndex) -> None:
        self.index, self.rows = index, index.load()
        try:
            self._file = os.open(index.tar, os.O_RDONLY)
        except OSError as error:
            raise ModalignError(f"cannot read {index.tar}: {error.strerror}") from error
        # Closed when nobody reads it any more, which another thread may do after it left the cache.
        finalize(self, os.close, self._file)

    def read(self, offset: int, size: int, name: str, what: str) -> bytes:
        """`size` bytes from `offset` on, which hold the `what` of sample `name`."""
        if stamp(os.fstat(self._file)) != self.index.stamp:
            raise ModalignError(f"{self.index.tar} has changed since it was indexed; start again")
        if offset < 0:
            raise SampleError(name, f"the {what} is missing")
        if size > MAX_MEMBER:
            raise SampleError(name, f"the {what} is said to have {size:,} bytes")
        try:
            content = os.pread(self._file, int(size), int(offset))
        except OSError as error:
            raise SampleError(name, f"the {what} cannot be read: {error.strerror}") from error
        if len(content) < size:
            raise SampleError(name, f"the tar ends within the {what}")
        return content


@lru_cache(OPEN_TARS)
def _opened(index: TarIndex) -> _OpenTar:
    return _OpenTar(index)


def _tars(paths: Sequence[str]) -> list[Path]:
    """What the paths stand for, each tar once, in the order of paths and then of names."""
    found: dict[Path, None] = {}
    for path in paths:
        pattern = os.path.join(path, "*.tar") if os.path.isdir(path) else path
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise ValueError(f"no tar at {path}; give a tar, a folder of them, or a pattern")
        found.update(dict.fromkeys(Path(match) for match in matches))
    return list(found)


@hookimpl
def modalign_datasets() -> list[DatasetSpec]:
    """Tars in WebDataset's layout."""
    return [
        DatasetSpec(
            name="webdataset",
            summary="tars of pictures and captions, such as BLIP3-o's long and short caption sets",
            build=WebDataset,
        )
    ]
