"""Targets on disk: what comes back, and what a damaged or foreign cache does."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modalign import EncoderSpec, ModalignError, SampleError, TokenGroup, TokenStreamSpec, installed
from modalign.data import (
    Cached,
    Sample,
    Skipped,
    Stream,
    TokenCache,
    bytes_per_sample,
    fill_cache,
    token_cache,
)
from modalign.data.stored_tokens import restored, stored
from tests.modalign import stubs
from tests.modalign.data.worlds import Endless, Finite, Shards

SPEC = EncoderSpec(
    name="stub-encoder", build=stubs.Encoder, stream=stubs.STREAM, preprocessing="the mean shade"
)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four float16 streams of the stub, 7 tokens of 4 values, fill a shard."""
    monkeypatch.setattr("modalign.data.encoding.SHARD_BYTES", 4 * 2 * 28)


def fill(path: Path, dataset: Any, **options: Any) -> TokenCache:
    return fill_cache(path, dataset, "world", stubs.Encoder(), SPEC, **options)


def live(dataset: Any, index: int) -> dict[str, torch.Tensor]:
    encoder = stubs.Encoder()
    return encoder.encode(encoder.prepare([dataset.example(index).image]))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("precision", "error"), [("float16", 2**-10), ("int8", 0.01)])
def test_tokens_come_back_as_they_were_encoded(
    tmp_path: Path, precision: Any, error: float
) -> None:
    """float16 halves have 11 bits below 4; an int8 step is 1/127 of a token's largest value."""
    world = Finite(10)
    cache = fill(tmp_path / "cache", world, precision=precision, batch_size=3)
    for index in range(10):
        target = cache.read(index)
        assert target is not None
        stubs.STREAM.check(target)
        for name, tokens in live(world, index).items():
            torch.testing.assert_close(target[name], tokens, atol=error, rtol=0)
    assert cache.read(10) is None
    assert cache.verify() == {}


def test_the_rounding_of_int8_stays_below_half_a_step() -> None:
    tokens = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).numpy()
    tokens[3] = 0
    back = restored(stored(tokens, "x", "int8"), "x")
    step = np.abs(tokens).max(axis=1, keepdims=True) / 127
    assert (np.abs(back - tokens) <= step / 2 + 1e-6).all()
    assert (back[3] == 0).all()


def test_the_bytes_of_a_gap3d_sample() -> None:
    """1374 tokens of 1024: 2 bytes a value, or 1 and 4 a token."""
    stream = installed().get("encoders", "dinov2-vitl14-reg").stream
    assert bytes_per_sample(stream, "float16") == 1374 * 1024 * 2 == 2_813_952
    assert bytes_per_sample(stream, "int8") == 1374 * (1024 + 4) == 1_412_472


def test_a_stream_over_a_cache_needs_no_encoder_and_no_picture(tmp_path: Path) -> None:
    class Prompts(Finite):
        def prompt_only(self, index: int, epoch: int = 0) -> Any:
            return type(self.example(index))(
                self.example(index, epoch).prompt, identifier=f"world/{index}"
            )

    world = Prompts(9, bad=[4])
    fill(tmp_path / "cache", world)
    cached = Cached(world, tmp_path / "cache")
    found = [Stream([(cached, 1.0)], seed=0)[slot] for slot in range(18)]
    samples = [item for item in found if isinstance(item, Sample)]
    assert [item.identifier for item in found if isinstance(item, Skipped)] == ["world/4"] * 2
    assert len(samples) == 16
    for sample in samples:
        assert sample.example.image is None
        assert sample.target is not None
        index = int(sample.example.identifier.split("/")[1])
        expected = live(world, index)["cls"]
        torch.testing.assert_close(sample.target["cls"], expected, atol=1e-3, rtol=0)


def test_a_cache_changes_nothing_about_the_order(tmp_path: Path) -> None:
    world = Shards([5, 8])
    fill(tmp_path / "cache", world)
    plain = Stream([(world, 1.0)], seed=3, window=4)
    beside = Stream([(Cached(world, tmp_path / "cache"), 1.0)], seed=3, window=4)
    assert [plain.place(k) for k in range(40)] == [beside.place(k) for k in range(40)]


def test_what_the_cache_lacks_is_left_to_the_trainer_or_skipped(tmp_path: Path) -> None:
    world = Finite(10)
    fill(tmp_path / "cache", world, limit=6)
    given = Cached(world, tmp_path / "cache").sample(7)
    assert given[1] is None
    assert given[0].image is not None
    with pytest.raises(SampleError, match="no tokens"):
        Cached(world, tmp_path / "cache", missing="skip").sample(7)
    with pytest.raises(ModalignError, match="use 'encode' or 'skip'"):
        Cached(world, tmp_path / "cache", missing="guess")  # type: ignore[arg-type]


def test_bad_samples_are_named_once_and_the_others_kept(tmp_path: Path) -> None:
    cache = fill(tmp_path / "cache", Finite(10, bad=[0, 3, 9]), batch_size=2)
    assert cache.skipped() == {index: f"world/{index}: it is bad on purpose" for index in (0, 3, 9)}
    assert [cache.read(index) is None for index in range(10)] == [
        index in (0, 3, 9) for index in range(10)
    ]


def test_ranks_together_write_what_one_process_writes(tmp_path: Path) -> None:
    world = Finite(22, bad=[5])
    fill(tmp_path / "one", world)
    for rank in (2, 0, 1):
        fill(tmp_path / "many", world, rank=rank, world_size=3)
    assert files(tmp_path / "one") == files(tmp_path / "many")


def test_a_killed_run_continues_where_it_was(tmp_path: Path) -> None:
    """The process is killed within its third shard, by itself; shards that are whole stay."""
    code = f"""
import os, signal, sys
from pathlib import Path
from tests.modalign.data.test_token_cache import *
import modalign.data.encoding as encoding
encoding.SHARD_BYTES = 4 * 2 * 28
class Dying(Finite):
    def example(self, index, epoch=0):
        if index == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().example(index, epoch)
fill(Path({str(tmp_path / "cache")!r}), Dying(14), batch_size=1, threads=1)
"""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=300)
    assert done.returncode == -9
    before = files(tmp_path / "cache")
    assert {"000000.json", "000001.json"} <= set(before)
    assert "000002.json" not in before
    stamp = (tmp_path / "cache" / "000000.safetensors").stat().st_mtime_ns
    fill(tmp_path / "cache", Finite(14))
    fill(tmp_path / "whole", Finite(14))
    assert (tmp_path / "cache" / "000000.safetensors").stat().st_mtime_ns == stamp
    assert files(tmp_path / "cache") == files(tmp_path / "whole")


def test_only_samples_of_a_damaged_shard_fall_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One byte of the first shard's values is turned; the second shard is cut."""
    world = Finite(12)
    cache = fill(tmp_path / "cache", world)
    first, second = (tmp_path / "cache" / f"00000{k}.safetensors" for k in (0, 1))
    content = bytearray(first.read_bytes())
    marker = content.index(np.float16(cache.read(2)["patches"].numpy()).tobytes())  # type: ignore[index]
    content[marker + 5] ^= 0x40
    first.write_bytes(bytes(content))
    second.write_bytes(second.read_bytes()[:-40])
    again = TokenCache.open(tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        missing = [index for index in range(12) if again.read(index) is None]
    assert missing == [2, 4, 5, 6, 7]
    assert set(again.damaged) == set(again.verify()) == {0, 1}
    assert [record.message.count("safetensors is damaged") for record in caplog.records] == [1, 1]
    example, target = Cached(world, again).sample(2)
    assert target is None
    assert example.image is not None


def test_a_cache_of_other_weights_or_another_space_is_refused(tmp_path: Path) -> None:
    class Other(stubs.Encoder):
        def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            return super().encode(batch * 1.7)

    cache = fill(tmp_path / "cache", Finite(5))
    before = files(tmp_path / "cache")
    with pytest.raises(ModalignError, match="other weights"):
        fill_cache(tmp_path / "cache", Finite(5), "world", Other(), SPEC)
    with pytest.raises(ModalignError, match="other weights"):
        cache.require(stubs.STREAM, {"cls": [0.0] * 16, "patches": [1.0] * 16})
    cache.require(stubs.STREAM)
    other = TokenStreamSpec(space="else/raw", groups=(TokenGroup(name="cls", shape=(1,), dim=4),))
    with pytest.raises(ModalignError, match="else/raw"):
        cache.require(other)
    assert files(tmp_path / "cache") == before


def test_a_cache_of_other_data_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "cache", Finite(5))
    with pytest.raises(ModalignError, match="with 5 samples, but the data has 6"):
        Cached(Finite(6), tmp_path / "cache")
    with pytest.raises(ModalignError, match="data has endless"):
        Cached(Endless(), tmp_path / "cache")
    renamed = Cached(Finite(5, name="elsewhere"), tmp_path / "cache")
    with pytest.raises(ModalignError, match="another name than 'elsewhere/2'"):
        renamed.sample(2)
    for options in ({"precision": "int8"}, {"limit": 3}):
        with pytest.raises(ModalignError, match="was begun with"):
            fill(tmp_path / "cache", Finite(5), **options)


def test_what_cannot_be_filled_or_opened_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ModalignError, match="--limit"):
        fill(tmp_path / "cache", Endless())
    with pytest.raises(ModalignError, match="no samples"):
        fill(tmp_path / "cache", Finite(0))
    with pytest.raises(ModalignError, match="modalign encode"):
        TokenCache.open(tmp_path / "cache")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModalignError, match="cannot write"):
        fill(tmp_path / "file" / "cache", Finite(3))
    fill(tmp_path / "cache", Finite(3))
    index = tmp_path / "cache" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "samples": 0}))
    with pytest.raises(ModalignError, match="samples: .*greater than 0"):
        TokenCache.open(tmp_path / "cache")


def test_values_without_place_in_float16_are_refused(tmp_path: Path) -> None:
    class Loud(stubs.Encoder):
        def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: 1e5 * tokens for name, tokens in super().encode(batch).items()}

    with pytest.raises(ModalignError, match=r"not finite in float16.*int8"):
        fill_cache(tmp_path / "half", Finite(2), "world", Loud(), SPEC)
    cache = fill_cache(tmp_path / "small", Finite(2), "world", Loud(), SPEC, precision="int8")
    assert cache.read(1) is not None


def test_an_open_cache_travels_to_workers(tmp_path: Path) -> None:
    cache = fill(tmp_path / "cache", Finite(5))
    first = cache.read(3)
    second = pickle.loads(pickle.dumps(cache)).read(3)
    assert first is not None
    assert torch.equal(first["patches"], second["patches"])


def test_no_more_shards_are_open_than_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "OPEN_SHARDS", 2)
    cache = fill(tmp_path / "cache", Finite(30))
    for index in [*range(30), 0, 29]:
        assert cache.read(index) is not None
    assert cache._opened.cache_info().currsize == 2  # type: ignore[attr-defined]


def test_tokens_that_are_no_numbers_are_refused_in_int8_too(tmp_path: Path) -> None:
    class Broken(stubs.Encoder):
        def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            stream = super().encode(batch)
            stream["patches"][0, 1, 2] = torch.nan
            return stream

    with pytest.raises(ModalignError, match="'patches' of world/0 has values that are not finite"):
        fill_cache(tmp_path / "cache", Finite(3), "world", Broken(), SPEC, precision="int8")
