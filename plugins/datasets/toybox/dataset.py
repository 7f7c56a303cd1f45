"""The toybox itself: everything is a function of seed, split, index and view."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from . import captions, edits, questions
from .camera import TRELLIS_MARGIN, Camera, framed, stand
from .edits import Edit
from .families import FAMILIES
from .objects import ToyObject, sample
from .palette import PALETTE
from .render import Light, cast, shade
from .scenery import Scenery, compose, paint
from .shapes import Array
from .splits import SPLITS

# Each kind of draw has its own stream, so that asking for one thing never changes another.
_OBJECT, _CAPTION, _SCENE, _ASSET, _QUESTION, _EDIT, _COMPANION = range(7)

# Where the asset camera stands on average: a three-quarter view from the front.
ASSET_YAW = 30.0


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture and the truth about it.

    `image` (H, W, 3) uint8; `part_ids` (H, W), the main object's part at each pixel, -1 for the
    background and -2 for anything else; `depth` (H, W) along the camera's axis in object lengths,
    inf where nothing; `alpha` (H, W) in 0..1, whether the pixel shows the object. `scenery` is
    None for assets.
    """

    image: NDArray[np.uint8]
    part_ids: NDArray[np.int16]
    depth: Array
    alpha: Array
    camera: Camera
    object: ToyObject
    scenery: Scenery | None
    seed: tuple[int, ...]

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """Short captions of what the picture shows, six of them."""
        return tuple(captions.short(self.object, self.scenery, _generator(*self.seed, 0)))

    @cached_property
    def descriptions(self) -> tuple[str, ...]:
        """Long captions of what the picture shows, four of them."""
        return tuple(captions.long(self.object, self.scenery, _generator(*self.seed, 1)))


def _generator(*entropy: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


class Toybox:
    """A procedural, captioned world of coloured objects, deterministic by index.

    Args:
        seed: Selects one of many toyboxes; two with the same seed are equal.
    """

    families = FAMILIES
    palette = PALETTE

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def _key(self, split: str, index: int, *purpose: int) -> tuple[int, ...]:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} does not exist; use one of {', '.join(SPLITS)}")
        if index < 0:
            raise ValueError(f"index {index} is negative; toybox indices start at 0")
        return (self.seed, SPLITS.index(split), index, *purpose)

    def object(self, index: int, split: str = "train") -> ToyObject:
        """The object of an index."""
        return sample(_generator(*self._key(split, index, _OBJECT)), split)

    def captions(self, index: int, split: str = "train", length: str = "short") -> list[str]:
        """Captions of the object alone, without surroundings: `length` "short" or "long"."""
        if length not in ("short", "long"):
            raise ValueError(f"length {length!r} does not exist; use 'short' or 'long'")
        rng = _generator(*self._key(split, index, _CAPTION, int(length == "long")))
        write = captions.short if length == "short" else captions.long
        return write(self.object(index, split), None, rng)

    def questions(self, index: int, split: str = "train") -> list[tuple[str, str]]:
        """Questions about the object and their one-word answers."""
        rng = _generator(*self._key(split, index, _QUESTION))
        return questions.ask(self.object(index, split), rng)

    def edits(self, index: int, split: str = "train") -> list[Edit]:
        """Edit instructions and the edited objects; main colours stay within the split's."""
        rng = _generator(*self._key(split, index, _EDIT))
        return edits.propose(self.object(index, split), split, rng)

    def asset(
        self,
        index: int,
        split: str = "train",
        size: int = 112,
        view: int = 0,
        subject: ToyObject | None = None,
    ) -> Sample:
        """The object alone on black, cropped as TRELLIS crops its input.

        The window is the square around the projected outline times 1.2, and the rays go through
        its pixels: the crop of a picture of unlimited resolution, with nothing to resample.

        Args:
            index: Which object.
            split: Of which split.
            size: Side of the picture in pixels.
            view: Number of the view; each has its camera and light.
            subject: Shown in the object's place, from the same camera, such as an edited object.
        """
        toy = self.object(index, split) if subject is None else subject
        key = self._key(split, index, _ASSET, view)
        rng = _generator(*key)
        yaw, pitch = ASSET_YAW + rng.uniform(-45, 45), rng.uniform(15, 40)
        camera = stand(yaw, pitch, rng.uniform(2.2, 2.6))
        camera = framed(camera, toy.hull, TRELLIS_MARGIN)
        hits = cast(toy.solids, toy.hull, camera, size)
        seen = hits.solid >= 0
        part_ids = np.full((size, size), -1, np.int16)
        part_ids[seen] = toy.solid_parts[hits.solid[seen]]
        image = np.zeros((size, size, 3), np.float32)
        colors = toy.palette[part_ids[seen]]
        light = _studio(yaw, rng)
        image[seen] = shade(colors, hits.normals[seen], hits.rays[seen], light)
        return Sample(
            _bytes(image), part_ids, hits.depth, seen.astype(np.float32), camera, toy, None, key
        )

    def scene(
        self,
        index: int,
        split: str = "train",
        size: int = 112,
        view: int = 0,
        subject: ToyObject | None = None,
    ) -> Sample:
        """The object on a floor before a wall, with clutter and perhaps a second object.

        Args are those of `asset`.
        """
        toy = self.object(index, split)
        key = self._key(split, index, _SCENE, view)
        rng = _generator(*key)
        other = None
        if rng.random() < 0.25:
            other = sample(_generator(*self._key(split, index, _COMPANION, view)), split)
        yaw, pitch = rng.uniform(-75, 75), rng.uniform(5, 50)
        scenery = compose(rng, toy, yaw, other)
        camera = _scene_camera(rng, toy, scenery, yaw, pitch)
        toy = toy if subject is None else subject
        image, hits, depth = paint(toy, scenery, camera, size)
        part_ids = np.full((size, size), -1, np.int16)
        main = (hits.solid >= 0) & (hits.solid < len(toy.solids))
        part_ids[hits.solid >= len(toy.solids)] = -2
        part_ids[main] = toy.solid_parts[hits.solid[main]]
        alpha = main.astype(np.float32)
        return Sample(_bytes(image), part_ids, depth, alpha, camera, toy, scenery, key)


def _studio(yaw: float, rng: np.random.Generator) -> Light:
    """A soft light from above the camera's left."""
    azimuth = np.radians(yaw - 35 + rng.uniform(-15, 15))
    height = np.radians(50 + rng.uniform(-10, 10))
    towards = (
        float(np.sin(azimuth) * np.cos(height)),
        float(-np.cos(azimuth) * np.cos(height)),
        float(np.sin(height)),
    )
    return Light(towards, direct=(0.32, 0.32, 0.32), ambient=(0.68, 0.68, 0.68))


def _scene_camera(
    rng: np.random.Generator, toy: ToyObject, scenery: Scenery, yaw: float, pitch: float
) -> Camera:
    camera = stand(yaw, pitch, rng.uniform(2.4, 4.0))
    shift = (float(rng.uniform(-0.06, 0.06)), float(rng.uniform(-0.06, 0.06)))
    if scenery.companion is None:
        return framed(camera, toy.hull, float(rng.uniform(1.3, 2.1)), shift)
    return framed(camera, scenery.group(toy), float(rng.uniform(1.15, 1.4)))


def _bytes(image: Array) -> NDArray[np.uint8]:
    return (image * 255 + 0.5).astype(np.uint8)
