"""Checkpoints to continue from: a folder per step, whole or not there at all.

Each process writes one safetensors file of the rows it holds, in the background, and then a note of
what is in it. When all notes are there rank 0 writes `manifest.json`, layouts and checksums, and
gives the folder its final name. Own format: torch's distributed checkpoint keeps its metadata in a
pickle, its safetensors writer has no checksums, and neither appears whole. Any number of
processes may read what any other number wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modalign.errors import OutputError, WeightsError

MANIFEST = "manifest.json"
POLL_SECONDS = 0.02  # how often rank 0 looks for the other processes' notes


@dataclass(frozen=True)
class Piece:
    """Rows `start` and on of a tensor of `shape`; all of it where their shapes are equal."""

    tensor: Tensor
    shape: tuple[int, ...]
    start: int = 0

    @property
    def rows(self) -> int:
        """How many; 1 of a tensor without axes."""
        return len(self.tensor) if self.shape else 1


class Snapshots:
    """The checkpoints of one run, in `folder`; the newest `keep_last` stay.

    So do those whose step is a multiple of `keep_every`, if that is not 0.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int = 0,
        size: int = 1,
        writes: bool = True,
        keep_last: int = 2,
        keep_every: int = 0,
    ) -> None:
        """`writes`: whether this process holds rows that no other one stores."""
        self.folder, self.rank, self.size, self.writes = folder, rank, size, writes
        self.keep_last, self.keep_every = keep_last, keep_every
        self._writer: Thread | None = None
        self._error: BaseException | None = None

    def clean(self) -> None:
        """Remove what a killed process left unfinished. For rank 0, before anybody writes."""
        for left in self.folder.glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, oldest first."""
        numbers = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted(int(number) for number in numbers if number.isdecimal())

    def path(self, step: int) -> Path:
        """The folder of one."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, pieces: Mapping[str, Piece]) -> None:
        """Copy `pieces` to the CPU now, write them in the background.

        Raises:
            OutputError: the one before could not be written.
        """
        self.finish()
        own = {}
        for name, piece in pieces.items():
            if self.writes and (piece.rows or (not piece.start and 0 in piece.shape)):
                if piece.shape or self.rank == 0:
                    copy = piece.tensor.detach().to("cpu", copy=True).contiguous()
                    own[name] = Piece(copy, piece.shape, piece.start)
        self._writer = Thread(target=self._write, args=(step, own), name="checkpoint")
        self._writer.start()

    def check(self) -> None:
        """Tell of a failure in the background, without waiting.

        Raises:
            OutputError: a checkpoint could not be written; those before it are untouched.
        """
        if self._error is not None:
            error, self._error = self._error, None
            last = self.steps()
            good = f"the last whole one is {self.path(last[-1])}" if last else "there is none yet"
            raise OutputError(
                f"cannot write a checkpoint into {self.folder}: "
                f"{getattr(error, 'strerror', None) or error}; {good}; make room and start again"
            ) from error

    def finish(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            OutputError: it could not be.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        self.check()

    def _write(self, step: int, pieces: Mapping[str, Piece]) -> None:
        partial = self.folder / f".step-{step:08d}.partial"
        try:
            partial.mkdir(parents=True, exist_ok=True)
            self._write_own(partial, pieces)
            if self.rank == 0:
                self._complete(partial, step)
                self._forget_old(step)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            self._error = error

    def _write_own(self, partial: Path, pieces: Mapping[str, Piece]) -> None:
        file = partial / f"rank-{self.rank:05d}.safetensors"
        save_file({name: piece.tensor for name, piece in pieces.items()}, file)
        with file.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
            os.fsync(stream.fileno())
        held = {name: [list(p.shape), p.start, p.rows] for name, p in pieces.items()}
        note = {"file": file.name, "sha256": checksum, "pieces": held}
        _write_json(partial / f"rank-{self.rank:05d}.json", note)

    def _complete(self, partial: Path, step: int) -> None:
        notes = [partial / f"rank-{rank:05d}.json" for rank in range(self.size)]
        while not all(note.exists() for note in notes):
            time.sleep(POLL_SECONDS)
        files = [json.loads(note.read_text()) for note in notes]
        _write_json(partial / MANIFEST, {"step": step, "files": files})
        for note in notes:
            note.unlink()
        target = self.path(step)
        if target.exists():  # a damaged one that was passed over
            self._discard(target)
        partial.rename(target)
        _fsync_folder(self.folder)

    def _forget_old(self, newest: int) -> None:
        steps = [step for step in self.steps() if step <= newest]
        for step in steps[: -self.keep_last]:
            if not (self.keep_every and step % self.keep_every == 0):
                self._discard(self.path(step))

    def _discard(self, path: Path) -> None:
        """Remove a checkpoint; hidden first, so that none is ever seen in part."""
        hidden = path.with_name(f".{path.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


class Snapshot:
    """One checkpoint, to be read piece by piece."""

    def __init__(self, path: Path) -> None:
        """Read what it holds.

        Raises:
            WeightsError: there is no manifest, or it cannot be read.
        """
        self.path = path
        try:
            manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
            self.step: int = manifest["step"]
            self.files: list[dict[str, Any]] = manifest["files"]
            self.shapes = {
                name: tuple(shape)
                for file in self.files
                for name, (shape, _, _) in file["pieces"].items()
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"checkpoint {path} is damaged: {error}") from error

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            WeightsError: names the file that differs.
        """
        for file in self.files:
            try:
                with (self.path / file["file"]).open("rb") as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise WeightsError(f"checkpoint {self.path} is damaged: {error}") from error
            if found != file["sha256"]:
                raise WeightsError(
                    f"checkpoint {self.path} is damaged: {file['file']} has another checksum"
                )

    @torch.no_grad()
    def fill(self, pieces: Mapping[str, Piece]) -> None:
        """Copy the rows of each piece into its tensor, wherever they were written.

        Raises:
            WeightsError: a tensor is missing or has another shape.
        """
        for name, piece in pieces.items():
            if self.shapes.get(name) != piece.shape:
                raise WeightsError(
                    f"checkpoint {self.path} has {name} as {self.shapes.get(name)}, expected "
                    f"{piece.shape}"
                )
        for file in self.files:
            with safe_open(self.path / file["file"], framework="pt") as opened:
                for name, (_, start, rows) in file["pieces"].items():
                    if name in pieces:
                        _copy(opened, name, start, rows, pieces[name])

    def scalars(self, prefix: str) -> dict[str, Tensor]:
        """Tensors without axes whose names begin with `prefix`, by the rest of their names."""
        found = {
            name: Piece(torch.zeros(()), ()) for name in self.shapes if name.startswith(prefix)
        }
        self.fill(found)
        return {name.removeprefix(prefix): piece.tensor for name, piece in found.items()}


def _copy(opened: Any, name: str, start: int, rows: int, piece: Piece) -> None:
    if not piece.shape:
        piece.tensor.copy_(opened.get_tensor(name))
        return
    first, last = max(start, piece.start), min(start + rows, piece.start + piece.rows)
    if first < last:
        stored = opened.get_slice(name)[first - start : last - start]
        piece.tensor[first - piece.start : last - piece.start].copy_(stored)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write and rename, so that whoever waits for the name reads all of it."""
    partial = path.with_name(f".{path.name}")
    with partial.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
