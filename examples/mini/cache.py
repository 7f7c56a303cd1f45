"""What the trainings read over and over, drawn once from toybox into `runs/mini/cache/`.

Everything here can be deleted; it is made again from the world's seed. Files are plain arrays,
written under a temporary name and renamed when complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache as once
from typing import Any

import numpy as np
from modalign_plugins.datasets.toybox import Sample, Toybox, ToyObject, captions
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from trainer import RUNS

SIZE, PATCH = 112, 14
TRAIN_OBJECTS = 8000
TEXT_OBJECTS = 16_000
VIEWS = ("scene", "scene", "asset", "asset")  # of every training object
FOLDER = RUNS / "cache"

WORLD = Toybox(seed=0)


def samples(
    split: str, kinds: Sequence[str], index: int, subject: ToyObject | None = None
) -> list[Sample]:
    """Views of one object; the n-th of a kind is its view n.

    With a `subject`, views of that from the same cameras.
    """
    seen: dict[str, int] = {}
    found = []
    for kind in kinds:
        view = seen.get(kind, 0)
        seen[kind] = view + 1
        draw = WORLD.scene if kind == "scene" else WORLD.asset
        found.append(draw(index, split, size=SIZE, view=view, subject=subject))
    return found


def views(
    split: str, kinds: Sequence[str], index: int, subject: ToyObject | None = None
) -> NDArray[np.uint8]:
    """The pictures (V, H, W, 3) of `samples`."""
    return np.stack([sample.image for sample in samples(split, kinds, index, subject)])


def _train_views(index: int) -> NDArray[np.uint8]:
    return views("train", VIEWS, index)


def _twin_views(index: int) -> NDArray[np.uint8]:
    # Edits begin with one of the main colour, then one of another part's.
    edit = WORLD.edits(index)[0 if index % 4 == 0 else 1]
    return views("train", VIEWS, index, edit.object)


def _train_places(index: int) -> NDArray[np.float16]:
    return np.stack([patch_places(sample) for sample in samples("train", VIEWS, index)])


def _train_cameras(index: int) -> NDArray[np.float32]:
    stands = [sample.camera for sample in samples("train", VIEWS, index)]
    return np.radians([[camera.yaw, camera.pitch] for camera in stands], dtype=np.float32)


def patch_places(sample: Sample) -> NDArray[np.float16]:
    """Where each patch's part of the object lies, (P, 4): mean x, y, z and the share it covers."""
    side = SIZE // PATCH
    seen = sample.part_ids >= 0
    depth = np.where(seen, sample.depth, 0)[..., None]
    points = (sample.camera.eye + depth * sample.camera.rays(SIZE)) * seen[..., None]
    values = np.concatenate([points, seen[..., None]], 2)
    sums = values.reshape(side, PATCH, side, PATCH, 4).sum((1, 3)).reshape(side**2, 4)
    sums[:, :3] /= np.maximum(sums[:, 3:], 1)
    sums[:, 3] /= PATCH * PATCH
    return sums.astype(np.float16)


def drawn(
    name: str, shape: tuple[int, ...], make: Callable[[int], NDArray], dtype: str
) -> np.memmap:
    """The array `name`, row i made by `make(i)` on every core, read from disk if it is there."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.npy"
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        array = np.lib.format.open_memmap(temporary, "w+", np.dtype(dtype), shape)
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            rows = pool.map(make, range(shape[0]), chunksize=16)
            for index, row in enumerate(track(rows, f"drawing {name}", total=shape[0])):
                array[index] = row
        array.flush()
        os.replace(temporary, path)
    return np.lib.format.open_memmap(path, "r")


def pictures() -> np.memmap:
    """Training pictures (objects, views, H, W, 3) uint8: two scenes and two assets of each."""
    shape = (TRAIN_OBJECTS, len(VIEWS), SIZE, SIZE, 3)
    return drawn("pictures", shape, _train_views, "u1")


def twins() -> np.memmap:
    """The `pictures` once more with one part of each object in another colour."""
    shape = (TRAIN_OBJECTS, len(VIEWS), SIZE, SIZE, 3)
    return drawn("twins", shape, _twin_views, "u1")


def places() -> np.memmap:
    """For each of the `pictures`, (objects, views, P, 4) float16: see `patch_places`.

    Geometry alone: which patches of two views show the same spot of the object's surface.
    """
    shape = (TRAIN_OBJECTS, len(VIEWS), (SIZE // PATCH) ** 2, 4)
    return drawn("places", shape, _train_places, "f2")


def cameras() -> np.memmap:
    """Yaw and pitch of each of the `pictures` in radians, (objects, views, 2) float32."""
    return drawn("cameras", (TRAIN_OBJECTS, len(VIEWS), 2), _train_cameras, "f4")


def surface(resolution: int) -> np.memmap:
    """Cells that the surface of each training object crosses, (objects, R, R, R) bool."""
    shape = (TRAIN_OBJECTS, resolution, resolution, resolution)
    return drawn(f"surface-{resolution}", shape, Surface(resolution), "?")


@once
def _encoder() -> Any:
    import torch

    import modalign

    torch.set_num_threads(1)
    return modalign.installed().get("encoders", "dinov2-mini-reg").build()


def _tokens(index: int) -> NDArray[np.float16]:
    images = [Image.fromarray(image) for image in pictures()[index]]
    return _encoder().tokens(_encoder().prepare(images)).numpy().astype(np.float16)


def tokens() -> NDArray[np.float16]:
    """The encoder's tokens (objects, views, N, D) float16 of all `pictures`."""
    import modalign

    stream = modalign.installed().get("encoders", "dinov2-mini-reg").stream
    shape = (TRAIN_OBJECTS, len(VIEWS), stream.num_tokens, stream.groups[0].dim)
    return drawn("tokens", shape, _tokens, "f2")


class Surface:
    """Picklable: the surface cells of training object i."""

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution

    def __call__(self, index: int) -> NDArray[np.bool_]:
        """Cells (R, R, R)."""
        return WORLD.object(index, "train").surface_voxels(self.resolution)


def _text(index: int) -> str:
    toy = WORLD.object(index)
    rng = np.random.default_rng(index)
    edits = [
        {
            "instruction": edit.instruction,
            "short": captions.short(edit.object, None, rng)[:2],
            "long": captions.long(edit.object, None, rng)[:1],
        }
        for edit in WORLD.edits(index)
    ]
    row = {
        "family": toy.family,
        "short": WORLD.captions(index, length="short"),
        "long": WORLD.captions(index, length="long"),
        "questions": WORLD.questions(index),
        "edits": edits,
    }
    return json.dumps(row)


def texts() -> list[dict[str, Any]]:
    """Captions, questions and edits of the first `TEXT_OBJECTS` training objects."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "texts.jsonl"
    if not path.exists():
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            rows = pool.map(_text, range(TEXT_OBJECTS), chunksize=64)
            lines = list(track(rows, "writing texts", total=TEXT_OBJECTS))
        path.with_suffix(".tmp").write_text("\n".join(lines))
        os.replace(path.with_suffix(".tmp"), path)
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    texts()
    pictures()
    twins()
    places()
    cameras()
    surface(16)
