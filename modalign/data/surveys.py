"""A look at data before a long run: how much is there, what is bad, and what it looks like."""

from __future__ import annotations

import io
import textwrap
import time
from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from modalign.assets import write_whole
from modalign.data.cached import Cached
from modalign.data.stream import Skipped, Stream
from modalign.errors import ModalignError, OutputError
from modalign.specs import Dataset, Progress, ProgressCallback, ReportsProblems, Sharded

if TYPE_CHECKING:
    from PIL.Image import Image

ENDLESS_SAMPLES = 1000  # read of a data set that has no end, unless told otherwise
COLUMNS, ROWS, SIDE, LINES, LINE_HEIGHT = 6, 4, 176, 4, 13
REMEMBERED = 1_000_000  # captions that repetitions are found of; bounds the memory
NAMED = 5  # bad samples of each reason, and problems, that are written out


@dataclass
class Survey:
    """What was seen; `length` is None for data without end."""

    length: int | None
    shards: int | None
    good: int = 0
    bad: list[Skipped] = field(default_factory=list)
    words: Counter[int] = field(default_factory=Counter)  # captions by their number of words
    repeated: int = 0  # captions that an earlier sample had too
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    seconds: float = 0.0
    problems: tuple[str, ...] = ()
    cache: str = ""
    shown: list[tuple[Image, str]] = field(default_factory=list)

    def text(self) -> str:
        """The findings, a line each."""
        read = self.good + len(self.bad)
        length = "without end" if self.length is None else f"{self.length:,} samples"
        lines = [length if self.shards is None else f"{length} in {self.shards:,} shards"]
        speed = f"{read / self.seconds:,.0f} a second" if self.seconds else "at once"
        lines.append(f"{read:,} read, {speed}: {self.good:,} good, {len(self.bad):,} bad")
        reasons = Counter(item.reason for item in self.bad)
        for reason, count in reasons.most_common():
            names = [item.identifier for item in self.bad if item.reason == reason]
            lines.append(f"  {count:,} x {reason}: {_some(names)}")
        if self.problems:
            lines.append(f"{len(self.problems):,} problems of files: {_some(self.problems)}")
        if self.words:
            middle, most = (_quantile(self.words, share) for share in (0.5, 0.95))
            lines.append(
                f"captions: {min(self.words)} to {max(self.words)} words, median {middle}, "
                f"95 % have at most {most}; {self.repeated:,} are repetitions"
            )
        if self.sizes:
            common = ", ".join(
                f"{width}x{height} ({count:,})"
                for (width, height), count in self.sizes.most_common(3)
            )
            least = min(min(size) for size in self.sizes)
            lines.append(f"pictures: {common}; shortest side {least}")
        if self.cache:
            lines.append(self.cache)
        return "\n".join(lines)


def survey(
    dataset: Dataset,
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Survey:
    """Read `dataset` once, or `limit` samples in the order that training with `seed` would.

    Raises:
        ModalignError: not one sample can be used.
    """
    plain = dataset.dataset if isinstance(dataset, Cached) else dataset
    length = len(plain) if isinstance(plain, Sized) else None
    count = ENDLESS_SAMPLES if length is None else length
    if limit is not None:
        count = limit if length is None else min(limit, length)
    found = Survey(length, len(plain.shard_sizes) if isinstance(plain, Sharded) else None)
    if isinstance(plain, ReportsProblems):
        found.problems = tuple(plain.problems)
    stream = Stream([(plain, 1.0)], seed=seed)
    captions: set[int] = set()
    begun = time.perf_counter()
    for slot in range(count):
        item = stream[slot]
        if isinstance(item, Skipped):
            found.bad.append(item)
        else:
            found.good += 1
            text, image = item.example.prompt.text, item.example.image
            found.words[len(text.split())] += 1
            found.repeated += hash(text) in captions
            if len(captions) < REMEMBERED:
                captions.add(hash(text))
            if image is not None and not hasattr(image, "shape"):
                found.sizes[image.size] += 1
                if len(found.shown) < COLUMNS * ROWS:
                    found.shown.append((_thumbnail(image), text))
        if progress is not None:
            progress(Progress("reading", slot + 1, count))
    found.seconds = time.perf_counter() - begun
    if not found.good:
        first = found.bad[0]
        raise ModalignError(
            f"none of {count:,} samples can be used; the first: {first.identifier}: {first.reason}"
        )
    if isinstance(dataset, Cached):
        found.cache = _cache_line(dataset)
    return found


def contact_sheet(found: Survey, path: Path) -> None:
    """Write the first pictures of a survey with their captions, as a PNG.

    Raises:
        OutputError: it has no pictures, or the file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not found.shown:
        raise OutputError(f"cannot write {path}: the samples have no pictures")
    cell = SIDE + LINES * LINE_HEIGHT + 12
    rows = -(-len(found.shown) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 8) + 8, rows * cell + 8), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, (image, text) in enumerate(found.shown):
        left, top = 8 + number % COLUMNS * (SIDE + 8), 8 + number // COLUMNS * cell
        inset = (SIDE - image.width) // 2, (SIDE - image.height) // 2
        draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill=(232, 232, 232))
        sheet.paste(image, (left + inset[0], top + inset[1]))
        for line, words in enumerate(
            textwrap.wrap(text, width=30, max_lines=LINES, placeholder=" ...")
        ):
            where = left, top + SIDE + 3 + line * LINE_HEIGHT
            draw.text(where, words, fill=(40, 40, 40), font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    try:
        write_whole(path, buffer.getvalue())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _thumbnail(image: Image) -> Image:
    from PIL import ImageOps

    return ImageOps.contain(image, (SIDE, SIDE))


def _cache_line(dataset: Cached) -> str:
    cache = dataset.cache
    written = sum(map(cache.has, range(cache.header.num_shards)))
    damaged = cache.verify()
    line = (
        f"cache: {written:,} of {cache.header.num_shards:,} shards, {cache.header.precision} of "
        f"{cache.header.encoder!r}"
    )
    if damaged:
        names = [f"{shard:06d}.safetensors ({why})" for shard, why in damaged.items()]
        line += f"; {len(damaged)} damaged: {_some(names)}"
    return line


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _quantile(counts: Counter[int], share: float) -> int:
    """The smallest number that at least `share` of all counted ones do not exceed."""
    wanted, seen = share * counts.total(), 0
    for number in sorted(counts):
        seen += counts[number]
        if seen >= wanted:
            break
    return number
