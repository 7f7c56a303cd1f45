"""Tars as training data: what is found, what is bad, and what that costs."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from modalign import ModalignError
from modalign.data import Sample, Skipped, Stream, parse_source

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def shot(shade: int, kind: str = "JPEG", side: int = 24) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), shade % 256, np.uint8)).save(buffer, format=kind)
    return buffer.getvalue()


def tar(path: Path, members: Iterable[tuple[str, bytes]], form: str = "ustar") -> Path:
    with tarfile.open(path, "w", format=FORMATS[form]) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def pairs(numbers: Iterable[int]) -> list[tuple[str, bytes]]:
    return [
        member
        for number in numbers
        for member in (
            (f"{number:05d}.jpg", shot(number)),
            (f"{number:05d}.txt", f"picture {number}".encode()),
        )
    ]


def source(*paths: Path, **options: Any) -> Any:
    said = [f"path={path}" for path in paths] + [f"{key}={value}" for key, value in options.items()]
    return parse_source("webdataset?" + "&".join(said))[0]


@pytest.mark.parametrize("form", FORMATS)
def test_members_lie_where_the_standard_library_says(tmp_path: Path, form: str) -> None:
    """tarfile is the second implementation; names of 60 to 200 characters need every extension."""
    names = ["a/b.jpg", "a/b.txt", "x" * 60 + ".txt", "d/" * 40 + "e.txt", "f/" * 90 + "g" * 20]
    if form == "ustar":
        names.pop()
    path = tar(
        tmp_path / "x.tar", [(name, os.urandom(700 * k)) for k, name in enumerate(names)], form
    )
    with tarfile.open(path) as file:
        expected = [(m.name, m.offset_data, m.size) for m in file.getmembers()]
    (tmp_path / "any").mkdir()
    plugin = type(source(tar(tmp_path / "any" / "any.tar", pairs([1])))).__module__
    scan = importlib.import_module(plugin.rpartition(".")[0] + ".scan").scan
    assert scan(path) == (expected, [])


def test_every_sample_of_every_tar_is_there_in_order(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", pairs(range(5)))
    tar(tmp_path / "b.tar", pairs(range(5, 12)), "pax")
    data = source(tmp_path)
    assert (len(data), data.shard_sizes, data.problems) == (12, (5, 7), ())
    for index in range(12):
        example = data.example(index)
        assert example.prompt.text == f"picture {index}"
        assert abs(int(np.asarray(example.image)[0, 0, 0]) - index) <= 2
        letter = "a" if index < 5 else "b"
        assert example.identifier == f"{tmp_path.name}/{letter}.tar/{index:05d}"
        alone = data.prompt_only(index)
        assert (alone.prompt, alone.identifier) == (example.prompt, example.identifier)
        assert alone.image is None
    for index in (-1, 12):
        with pytest.raises(IndexError):
            data.example(index)


def test_paths_are_tars_folders_patterns_or_several(tmp_path: Path) -> None:
    for name in ("long", "short"):
        (tmp_path / name).mkdir()
        for k in range(2):
            tar(tmp_path / name / f"{k}.tar", pairs([k]))
    assert len(source(tmp_path / "long")) == 2
    assert len(source(tmp_path / "*" / "0.tar")) == 2
    assert len(source(tmp_path / "long", tmp_path / "short", tmp_path / "long" / "1.tar")) == 4
    with pytest.raises(ModalignError, match="no tar at .*nowhere"):
        source(tmp_path / "nowhere")
    tar(tmp_path / "none.tar", [("readme.md", b"hello")])
    with pytest.raises(ModalignError, match="no sample in 1 tars"):
        source(tmp_path / "none.tar")


def test_pictures_may_be_png_or_webp_and_captions_json(tmp_path: Path) -> None:
    """Members of a sample need not lie together; a text is taken before JSON."""
    members = [
        ("0.png", shot(10, "PNG")),
        ("1.webp", shot(20, "WEBP")),
        ("2.JPG", shot(30)),
        ("0.json", json.dumps({"caption": "from json"}).encode()),
        ("1.json", json.dumps({"caption": ["one", "two", "three"], "size": 3}).encode()),
        ("2.json", json.dumps({"caption": "meta"}).encode()),
        ("2.txt", b"from text"),
        ("2.cls", b"7"),
        ("._2.txt", b"of a Mac"),
    ]
    data = source(tar(tmp_path / "x.tar", members))
    assert len(data) == 3
    assert data.example(0).prompt.text == "from json"
    assert data.example(2).prompt.text == "from text"
    drawn = Counter(data.prompt_only(1, epoch).prompt.text for epoch in range(60))
    assert set(drawn) == {"one", "two", "three"}
    other = source(tmp_path / "x.tar", caption_key="long")
    with pytest.raises(ModalignError, match="x.tar/0: the caption is missing"):
        other.example(0)


BAD = {
    "the picture is damaged": [("jpg", shot(1, side=200)[:700])],
    "no picture that can be read": [("jpg", b"<html>")],
    "the picture is empty": [("jpg", b"")],
    "the picture is missing": [("jpg", None)],
    "the caption is missing": [("txt", None)],
    "the caption is empty": [("txt", b" \n")],
    "the caption is not UTF-8": [("txt", b"caf\xe9")],
    "the JSON is damaged": [("txt", None), ("json", b"{")],
    "no object with a caption": [("txt", None), ("json", b"[1]")],
}


def test_as_many_samples_are_skipped_as_are_bad_and_each_is_named(tmp_path: Path) -> None:
    """Three of every sort, three with a broken header for each member, and one cut off."""
    members: dict[str, dict[str, bytes]] = {}
    expected: dict[str, str] = {}
    number = 0
    for repeat in range(3):
        for reason, changes in BAD.items():
            for good in (True, False):
                key = f"{number:05d}"
                number += 1
                sample = {"jpg": shot(number), "txt": b"a caption"}
                if not good:
                    expected[key] = reason
                    for extension, content in changes:
                        sample.pop(extension, None)
                        if content is not None:
                            sample[extension] = content
                members[key] = sample
        for extension, reason in (("jpg", "the picture is missing"), ("txt", "the caption is mis")):
            key = f"{number:05d}"
            number += 1
            members[key] = {"jpg": shot(3), "txt": b"header will break"}
            expected[key] = reason
            members[key][f"break-{extension}"] = b""
        assert repeat < 3
    broken = {
        f"{key}.{name.removeprefix('break-')}"
        for key, sample in members.items()
        for name in [name for name in sample if name.startswith("break-")]
        if sample.pop(name) == b""
    }
    members["99998"] = {"jpg": shot(5), "txt": b"whole"}
    members["99999"] = {"txt": b"cut off", "jpg": shot(5, side=100)}
    expected["99999"] = "the tar ends within the picture"
    path = tar(
        tmp_path / "x.tar",
        [
            (f"{key}.{name}", content)
            for key, sample in members.items()
            for name, content in sample.items()
        ],
    )
    with tarfile.open(path) as file:
        headers = {m.name: m.offset for m in file.getmembers() if m.name in broken}
        cut = file.getmembers()[-1].offset_data + 100
    content = bytearray(path.read_bytes()[:cut])
    for offset in headers.values():
        content[offset + 10] ^= 0xFF
    path.write_bytes(bytes(content))
    assert len(headers) == 6

    data = source(path)
    found = [Stream([(data, 1.0)], seed=0)[slot] for slot in range(len(data))]
    skipped = {item.identifier.split("/")[-1]: item for item in found if isinstance(item, Skipped)}
    assert len(found) == len(members)
    assert set(skipped) == set(expected)
    assert len(skipped) == 3 * (len(BAD) + 2) + 1
    for key, reason in expected.items():
        assert reason in skipped[key].reason
        assert skipped[key].identifier == f"{tmp_path.name}/x.tar/{key}"
    assert sum(isinstance(item, Sample) for item in found) == len(members) - len(expected)
    assert sum("header at byte" in problem for problem in data.problems) == 6
    assert sum("ends within the member" in problem for problem in data.problems) == 1


def test_zeros_in_the_middle_do_not_hide_what_follows(tmp_path: Path) -> None:
    """tarfile itself stops at the first such block."""
    path = tar(tmp_path / "x.tar", pairs(range(6)))
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as file:
        offset = file.getmembers()[4].offset
    content[offset : offset + 512] = bytes(512)
    path.write_bytes(bytes(content))
    data = source(path)
    assert len(data) == 6
    with pytest.raises(ModalignError, match="00002: the picture is missing"):
        data.example(2)
    assert data.example(5).prompt.text == "picture 5"


def test_a_key_that_comes_twice_is_reported_and_kept_once(tmp_path: Path) -> None:
    data = source(tar(tmp_path / "x.tar", [*pairs([1]), *pairs([1, 2])]))
    assert len(data) == 2
    assert len(data.problems) == 2
    assert all("twice" in problem for problem in data.problems)


def test_an_index_is_made_once_and_again_when_the_tar_changes(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", pairs(range(3)))
    first = source(path)
    rows = tmp_path / "x.tar.index.npy"
    stamp = rows.stat().st_mtime_ns
    source(path)
    assert rows.stat().st_mtime_ns == stamp
    first.example(0)
    tar(path, pairs(range(10, 15)))
    again = source(path)
    assert len(again) == 5
    assert again.example(4).prompt.text == "picture 14"
    with pytest.raises(ModalignError, match="has changed since it was indexed"):
        first.example(0)
    (tmp_path / "x.tar.index.json").write_text("{")
    assert len(source(path)) == 5
    rows.write_bytes(rows.read_bytes()[:-8])
    assert len(source(path)) == 5


def test_a_tar_that_changes_after_it_was_indexed_is_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", pairs(range(3)))
    data = source(path)
    tar(path, pairs(range(4)))
    with pytest.raises(ModalignError, match="has changed since it was indexed"):
        data.example(0)


def test_indices_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tar(tmp_path / name / "0.tar", pairs([1]))
    assert len(source(tmp_path / "a", tmp_path / "b", index=tmp_path / "made")) == 2
    assert len(list((tmp_path / "made").iterdir())) == 4
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["0.tar"]
    (tmp_path / "file").touch()
    with pytest.raises(ModalignError, match="index=FOLDER"):
        source(tmp_path / "a", index=tmp_path / "file" / "x")


def test_a_data_set_travels_to_workers(tmp_path: Path) -> None:
    data = source(tar(tmp_path / "x.tar", pairs(range(3))))
    data.example(0)
    copy = pickle.loads(pickle.dumps(data))
    assert copy.example(2).prompt == data.example(2).prompt


def test_worker_processes_read_what_one_process_reads(tmp_path: Path) -> None:
    """Each worker takes every second slot, of tars that the first process already holds open."""
    for number in range(3):
        tar(tmp_path / f"{number}.tar", pairs(range(10 * number, 10 * number + 10)))
    stream = Stream([(source(tmp_path), 1.0)], seed=2, window=4)
    alone = [stream[slot] for slot in range(40)]
    loader = DataLoader(
        stream,  # type: ignore[arg-type]
        sampler=range(40),
        batch_size=None,
        num_workers=2,
        multiprocessing_context="fork",
        generator=torch.Generator(),
    )
    for one, other in zip(alone, loader, strict=True):
        assert isinstance(one, Sample)
        assert (one.slot, one.example.prompt) == (other.slot, other.example.prompt)
        assert np.array_equal(np.asarray(one.example.image), np.asarray(other.example.image))


@pytest.mark.slow
def test_twenty_thousand_samples_come_once_each_in_memory_that_does_not_grow(
    tmp_path: Path,
) -> None:
    """Peak of Python's and numpy's memory while 2,000 and 20,000 samples of 20 tars are read."""
    picture = shot(9)
    for number in range(20):
        members = [
            member
            for k in range(1000)
            for member in (
                (f"{1000 * number + k:06d}.jpg", picture),
                (f"{1000 * number + k:06d}.txt", f"picture {1000 * number + k}".encode()),
            )
        ]
        tar(tmp_path / f"{number:02d}.tar", members)
    data = source(tmp_path)
    stream = Stream([(data, 1.0)], seed=1, window=1500)
    peaks = []
    for epoch, count in ((0, 2000), (1, 20_000)):
        names = Counter[str]()
        tracemalloc.start()
        for slot in range(20_000 * epoch, 20_000 * epoch + count):
            sample = stream[slot]
            assert isinstance(sample, Sample)
            if epoch == 1:
                names[sample.example.prompt.text] += 1
        own = sum(len(name) + 200 for name in names)  # what this test itself counts
        peaks.append(tracemalloc.get_traced_memory()[1] - own)
        tracemalloc.stop()
    assert len(names) == 20_000
    assert set(names.values()) == {1}
    assert peaks[1] < peaks[0] + 4_000_000, peaks
