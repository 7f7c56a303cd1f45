"""Reading for training: the tar index next to tarfile, and cached targets next to live ones."""

from __future__ import annotations

import importlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modalign import installed
from modalign.data import Cached, Stream, fill_cache, parse_source

SAMPLES = 1000


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of 1000 smooth 256 px JPEGs of about 10 kB, with captions."""
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("tars") / "0.tar"
    with tarfile.open(path, "w") as file:
        for k in range(SAMPLES):
            coarse = Image.fromarray(draw.integers(0, 256, (16, 16, 3)).astype(np.uint8))
            buffer = io.BytesIO()
            coarse.resize((256, 256), Image.Resampling.BICUBIC).save(buffer, format="JPEG")
            for name, content in ((f"{k}.jpg", buffer.getvalue()), (f"{k}.txt", b"a picture")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def data(tar: Path) -> Any:
    return parse_source(f"webdataset?path={tar}")[0]


@pytest.mark.benchmark(group="finding 2000 members of a tar")
@pytest.mark.parametrize("by", ["modalign", "tarfile"])
def test_scan(benchmark: Any, tar: Path, data: Any, by: str) -> None:
    scan = importlib.import_module(type(data).__module__.rpartition(".")[0] + ".scan").scan

    def listed() -> list[tuple[str, int, int]]:
        with tarfile.open(tar, "r:") as file:
            return [(m.name, m.offset_data, m.size) for m in file]

    found = benchmark(listed if by == "tarfile" else lambda: scan(tar)[0])
    assert len(found) == 2 * SAMPLES


@pytest.mark.benchmark(group="a sample with its target")
@pytest.mark.parametrize("target", ["live", "cached"])
def test_sample(benchmark: Any, data: Any, tmp_path: Path, target: str) -> None:
    spec = installed().get("encoders", "dinov2-mini-reg")
    encoder = spec.build()
    if target == "cached":
        cache = fill_cache(tmp_path / "cache", data, "tar", encoder, spec, limit=64)
        stream = Stream([(Cached(data, cache), 1.0)], seed=0)
    else:
        stream = Stream([(data, 1.0)], seed=0)
    slots = [slot for slot in range(SAMPLES) if stream.place(slot).index < 64]

    def read() -> int:
        count = 0
        for slot in slots:
            sample: Any = stream[slot]
            if sample.target is None:
                encoder.encode(encoder.prepare([sample.example.image]))
            count += 1
        return count

    assert benchmark.pedantic(read, rounds=5) == 64
