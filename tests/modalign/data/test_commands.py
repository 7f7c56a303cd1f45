"""`modalign encode` and `modalign data check` as a person meets them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modalign.data import TokenCache, parse_source
from tests.modalign.cli.outcomes import Command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures with captions, one of them damaged."""
    root = tmp_path / "set"
    root.mkdir()
    for k in range(5):
        Image.fromarray(np.full((120, 150, 3), 40 * k, np.uint8)).save(root / f"{k}.png")
        (root / f"{k}.txt").write_text(f"a wall of shade {k}")
    (root / "3.png").write_bytes(b"nothing")
    return root


def test_data_is_encoded_checked_and_then_trains_without_encoder(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    code, out, _ = command("encode", "gap3d-mini", "--data", f"folder?path={folder}", "-o", cache)
    assert code == 0
    assert "4 of 5 samples, 1 of 1 shards, float16 of 'dinov2-mini-reg'" in out
    assert "set/3.png: the bytes are no picture that can be read" in out
    dataset, _ = parse_source(f"folder?path={folder}&cache={cache}")
    example, target = dataset.sample(2)  # type: ignore[attr-defined]
    assert example.image is None
    TokenCache.open(cache).header.stream.check(target)
    source = f"folder?path={folder}&cache={cache}"
    code, out, _ = command("data", "check", source, "--output", "sheet.png")
    assert code == 0
    assert "5 read" in out
    assert "1 x the bytes are no picture that can be read: set/3.png" in out
    assert "cache: 1 of 1 shards" in out
    assert Path("sheet.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encode", "dinov2-mini-reg", "--data", "toybox", "-o", "c"], "--limit"),
        (
            ["encode", "dinov2-mini", "--data", "toybox", "-o", "c"],
            "Did you mean 'dinov2-mini-reg'",
        ),
        (["encode", "gap3d-mini", "--data", "toybix", "-o", "c"], "Did you mean 'toybox'"),
        (["encode", "gap3d-mini", "--data", "toybox", "-o", "c", "--precision", "int4"], "int8"),
        (["data", "check", "toybox?size=x"], "size='x'"),
        (["data", "check", "folder?path=/nowhere"], "no folder at /nowhere"),
        (["data", "check", "toybox", "-o", "x.jpg"], ".png"),
        (["data", "check", "toybox", "-o", "no/x.png"], "does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    command: Command, arguments: list[str], said: str
) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.slow
def test_processes_of_torchrun_share_the_work(tmp_path: Path) -> None:
    """Three at once, without a word between them, write what one alone does."""
    root = Path(__file__).parents[3]
    paths = f"{root}:{os.environ.get('PYTHONPATH', '')}"
    code = (
        "import modalign.data.encoding as e; e.SHARD_BYTES = 60_000; "
        "import modalign.cli as c; c.main()"
    )

    def start(output: Path, rank: int, world_size: int) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PYTHONPATH": paths,
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
        }
        what = ["encode", "gap3d-mini", "--data", "toybox", "--limit", "40", "--batch-size", "1"]
        line = [sys.executable, "-c", code, *what, "-o", str(output)]
        return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL)

    running = [start(tmp_path / "many", rank, 3) for rank in range(3)]
    running.append(start(tmp_path / "one", 0, 1))
    assert [process.wait(timeout=600) for process in running] == [0, 0, 0, 0]
    one, many = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "many")
    )
    assert len(one) > 5
    assert one == many


def test_an_encoder_of_texts_has_no_pictures_to_encode(command: Command, folder: Path) -> None:
    code, out, err = command(
        "encode", "clip-text-vitl14", "--data", f"folder?path={folder}", "-o", "cache"
    )
    assert (code, out) == (2, "")
    assert err == ("error: encoder 'clip-text-vitl14' reads texts; what is encoded are pictures\n")
    assert not Path("cache").exists()
