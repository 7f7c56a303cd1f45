"""What a person sees of data before a long run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modalign import Example, ModalignError, OutputError, Prompt
from modalign.data import Cached, contact_sheet, fill_cache, survey
from tests.modalign import stubs
from tests.modalign.data.test_token_cache import SPEC
from tests.modalign.data.worlds import Endless, Finite, Shards


class Captioned(Finite):
    """Sample i has i + 1 words, and the last two have the same."""

    def example(self, index: int, epoch: int = 0) -> Example:
        found = super().example(index, epoch)
        words = " ".join(["word"] * min(index + 1, self.length - 1))
        return Example(Prompt(words), found.image, identifier=found.identifier)


def test_a_survey_counts_and_names() -> None:
    """1, 2, 3, 5..20 and 20 words: of these 20 the tenth is 11 and the nineteenth 20."""
    said = survey(Captioned(21, bad=[3])).text().splitlines()
    assert said[0] == "21 samples"
    assert said[1].startswith("21 read, ")
    assert said[1].endswith(": 20 good, 1 bad")
    assert said[2] == "  1 x it is bad on purpose: world/3"
    assert said[3] == (
        "captions: 1 to 20 words, median 11, 95 % have at most 20; 1 are repetitions"
    )
    assert said[4] == "pictures: 16x16 (20); shortest side 16"


def test_only_some_of_many_bad_samples_are_written_out() -> None:
    text = survey(Finite(50, bad=range(20))).text()
    assert "20 x it is bad on purpose: " in text
    assert " and 15 more" in text


def test_a_limit_reads_the_first_samples_of_training_and_data_without_end_has_one() -> None:
    found = survey(Shards([40, 60]), limit=10)
    assert (found.length, found.shards, found.good) == (100, 2, 10)
    assert survey(Endless(), limit=7).good == 7
    assert survey(Finite(5), limit=7).good == 5


def test_data_of_which_nothing_can_be_used_is_refused() -> None:
    with pytest.raises(ModalignError, match=r"none of 4 samples can be used; the first: world/\d"):
        survey(Finite(4, bad=range(4)))


def test_the_state_of_a_cache_is_part_of_it(tmp_path: Path) -> None:
    cache = fill_cache(tmp_path / "cache", Finite(5), "world", stubs.Encoder(), SPEC)
    text = survey(Cached(Finite(5), cache)).text()
    assert text.splitlines()[-1] == "cache: 1 of 1 shards, float16 of 'stub-encoder'"
    shard = tmp_path / "cache" / "000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "1 damaged: 000000.safetensors" in survey(Cached(Finite(5), cache)).text()


def test_a_contact_sheet_shows_the_pictures(tmp_path: Path) -> None:
    found = survey(Finite(9))
    contact_sheet(found, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    for image, _ in found.shown:
        shade = np.asarray(image)[0, 0]
        assert (sheet == shade).all(axis=-1).sum() >= 16 * 16
    with pytest.raises(OutputError, match="cannot write"):
        contact_sheet(found, tmp_path / "none" / "sheet.png")
    found.shown.clear()
    with pytest.raises(OutputError, match="no pictures"):
        contact_sheet(found, tmp_path / "sheet.png")
