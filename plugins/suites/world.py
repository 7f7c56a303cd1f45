"""What the suites use of the toy world, reached through its data set."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from modalign import Example, installed

Array = NDArray[np.float32]


class Part(Protocol):
    """A named part of one colour."""

    name: str
    color: str


class Toy(Protocol):
    """An object of the world, the longest side of its bounding box 1, centred."""

    family: str
    parts: tuple[Part, ...]

    @property
    def color(self) -> str:
        """Name of the main part's colour; the main part is the first."""
        ...

    @property
    def second(self) -> Part | None:
        """The second most visible part."""
        ...

    def surface_voxels(self, resolution: int) -> NDArray[np.bool_]:
        """Cells (R, R, R) that the surface crosses."""
        ...

    def part_ids(self, points: Array) -> NDArray[np.int16]:
        """Index (N,) of the part nearest to points (N, 3)."""
        ...

    def mesh(self, resolution: int = 64) -> tuple[Array, NDArray[np.int64], Array]:
        """Vertices, faces and vertex colours."""
        ...


class World(Protocol):
    """The toy world: everything by index and split."""

    families: tuple[str, ...]
    palette: Mapping[str, tuple[float, float, float]]

    def object(self, index: int, split: str = "train") -> Toy:
        """Object `index` of a split."""
        ...

    def captions(self, index: int, split: str = "train", length: str = "short") -> list[str]:
        """Captions of the object; the first names family, main colour, second part and its."""
        ...


class Pairs(Protocol):
    """The world as a data set."""

    world: World

    def example(self, index: int) -> Example:
        """Caption and picture `index`."""
        ...


def pairs(domain: str, split: str, **options: Any) -> Pairs:
    """The registered data set "toybox"."""
    built: Pairs = installed().get("datasets", "toybox").build(domain, split, **options)
    return built
