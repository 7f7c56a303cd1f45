"""An encoder's own tokens straight into a generator: no language model, and no head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modalign.errors import PromptError
from modalign.specs import Asset, Generator, ProgressCallback, StreamMap, TargetEncoder

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Pair:
    """An encoder and a generator of its space. `modalign.pair` makes it.

    Attributes:
        encoder: reads samples.
        connect: carries its streams to the generator's space and device.
        generator: makes assets of them.
        crop: what the generator's spec says to do to a picture first, if anything.
    """

    encoder: TargetEncoder
    connect: StreamMap
    generator: Generator
    crop: Callable[[Image], Image] | None = None

    def generate(
        self,
        samples: Any,
        *,
        seed: int = 0,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> list[Asset]:
        """One asset per sample, of seeds `seed`, `seed + 1`, ...; `options` go to the generator.

        `samples` are a list or tuple of them, or a single one: what the encoder reads, pictures,
        texts or point clouds. A picture is cropped first, as those that the generator was trained
        on; its transparency counts.

        Raises:
            PromptError: there is no sample, or a picture that cannot be used.
            GenerationError: a stage produced nothing usable; the message names it.
        """
        several: list[Any] = list(samples) if isinstance(samples, (list, tuple)) else [samples]
        if not several:
            raise PromptError("nothing was given to generate from")
        if self.crop is not None:
            several = [self.crop(sample) for sample in several]
        stream = self.connect(self.encoder.encode(self.encoder.prepare(several)))
        return self.generator.generate(stream, seed=seed, progress=progress, **options)
