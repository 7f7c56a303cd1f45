"""What a generator makes of sampled tokens, as one sheet of pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from modalign.assets import Picture
from modalign.assets.viewing import Viewable
from modalign.errors import GenerationError
from modalign.pairing import Pair
from modalign.specs import Asset, Example
from modalign.tokens import TokenStream
from modalign.training.trackers import Picture as Pixels

SIDE = 192  # pixels of a cell
LINES, LINE_HEIGHT, COLUMNS = 3, 13, 30  # of the prompt below it
EMPTY = 232  # the grey where there is nothing to show


class Showing:
    """Puts streams of `examples` through the generator of a pair, one after the other."""

    def __init__(self, pair: Pair, examples: Sequence[Example]) -> None:
        self.connect, self.generator = pair.connect, pair.generator
        self.examples = examples

    def __call__(self, stream: TokenStream) -> Pixels:
        """A sheet (height, width, 3): pictures above, what is made of `stream` below, then prompts.

        Element k of the stream, {name: (B, K, D)}, belongs to example k and has seed k. A cell is
        grey where a generator made nothing usable, as it may early in a training.
        """
        height = 2 * SIDE + LINES * LINE_HEIGHT + 8
        sheet = Image.new("RGB", (SIDE * len(self.examples), height), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
        for number, example in enumerate(self.examples):
            one = {name: tokens[number : number + 1] for name, tokens in stream.items()}
            left = number * SIDE
            sheet.paste(_cell(example.image), (left, 0))
            sheet.paste(_cell(self._made(one, number)), (left, SIDE))
            lines = textwrap.wrap(example.prompt.text, COLUMNS, max_lines=LINES, placeholder=" ...")
            for line, words in enumerate(lines):
                where = left + 4, 2 * SIDE + 3 + line * LINE_HEIGHT
                draw.text(where, words, fill=(40, 40, 40), font=font)
        return np.asarray(sheet)

    def _made(self, stream: TokenStream, seed: int) -> object:
        try:
            (asset,) = self.generator.generate(self.connect(stream), seed=seed)
        except GenerationError:
            return None
        return _look(asset)


def _look(asset: Asset) -> object:
    """A picture of it, None of what shows none."""
    if isinstance(asset, Picture):
        return asset.pixels
    return asset.render(1, SIDE)[0] if isinstance(asset, Viewable) else None


def _cell(shown: object) -> Image.Image:
    """`shown` if it is a picture, else grey; SIDE by SIDE."""
    pixels = np.asarray(shown) if shown is not None else np.empty(0)
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        return Image.new("RGB", (SIDE, SIDE), (EMPTY,) * 3)
    picture = Image.fromarray(pixels).convert("RGB")
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
