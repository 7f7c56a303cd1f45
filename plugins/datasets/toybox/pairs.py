"""Toybox as training pairs: a caption and a picture of what it says."""

from typing import Literal

from modalign import DatasetSpec, Example, Prompt, hookimpl

from .dataset import Toybox
from .splits import SPLITS

Domain = Literal["scene", "asset"]


class ToyboxPairs:
    """Pairs by index: object i // views in its i % views-th picture, captions in turn.

    Args:
        domain: "scene" stands for pictures from the web, "asset" for renders.
        split: one of toybox's splits.
        seed: of the world.
        size: side of the pictures in pixels.
        views: pictures per object.

    Raises:
        ValueError: there is no such domain or split, or not even one pixel or view.
    """

    def __init__(
        self,
        domain: Domain = "scene",
        split: str = "train",
        *,
        seed: int = 0,
        size: int = 112,
        views: int = 2,
    ) -> None:
        if domain not in ("scene", "asset"):
            raise ValueError(f"domain {domain!r} does not exist; use 'scene' or 'asset'")
        if split not in SPLITS:
            raise ValueError(f"split {split!r} does not exist; use one of {', '.join(SPLITS)}")
        if size < 1 or views < 1:
            raise ValueError(f"size {size} and views {views} must be at least 1")
        self.world = Toybox(seed)
        self.domain, self.split, self.size, self.views = domain, split, size, views

    def example(self, index: int, epoch: int = 0) -> Example:
        """Pair `index`; short and long captions alternate between views, whatever the epoch."""
        from PIL import Image

        number, view = divmod(index, self.views)
        draw = self.world.scene if self.domain == "scene" else self.world.asset
        sample = draw(number, self.split, size=self.size, view=view)
        captions = sample.descriptions if view % 2 else sample.captions
        return Example(
            prompt=Prompt(captions[number % len(captions)]),
            image=Image.fromarray(sample.image),
            identifier=f"toybox/{self.split}/{number}/{self.domain}/{view}",
        )


@hookimpl
def modalign_datasets() -> list[DatasetSpec]:
    """The toy world."""
    return [
        DatasetSpec(
            name="toybox",
            summary="a procedural, captioned 3-D world of 28 families in 12 colours, no files",
            build=ToyboxPairs,
            source="drawn by index; nothing is downloaded",
            license="Apache-2.0",
        )
    ]
