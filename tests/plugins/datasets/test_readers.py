"""Folders, tables, renders, COCO and the Hub's files as training data."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modalign import ModalignError, SampleError, installed
from modalign.data import Skipped, Stream, parse_source


def shot(path: Path, shade: int = 50, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((24, 24, 3), shade, np.uint8)).save(path, **options)


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 24, 3), shade, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def source(text: str) -> Any:
    return parse_source(text)[0]


def skipped(data: Any) -> dict[str, str]:
    """What one epoch leaves out, by identifier."""
    stream = Stream([(data, 1.0)], seed=0)
    found = [stream[slot] for slot in range(len(data))]
    return {item.identifier: item.reason for item in found if isinstance(item, Skipped)}


def draws(data: Any, index: int) -> set[str]:
    """Captions of a sample over 50 epochs; the same again from a copy of the data set."""
    found = [data.prompt_only(index, epoch).prompt.text for epoch in range(50)]
    copy = pickle.loads(pickle.dumps(data))
    assert found == [copy.example(index, epoch).prompt.text for epoch in range(50)]
    return set(found)


def test_a_folder_has_a_text_beside_each_picture(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name, shade in (("b.png", 20), ("a.png", 10), ("deep/c.png", 30)):
        shot(root / name, shade)
        (root / name).with_suffix(".txt").write_text(f"shade {shade}\n")
    data = source(f"folder?path={root}")
    assert [data.example(k).identifier for k in range(len(data))] == [
        "set/a.png",
        "set/b.png",
        "set/deep/c.png",
    ]
    example = data.example(2)
    assert example.prompt.text == "shade 30"
    assert (np.asarray(example.image) == 30).all()


def test_bad_files_of_a_folder_are_counted_and_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("good", "empty", "none", "cut", "latin"):
        shot(root / f"{name}.png")
        (root / f"{name}.txt").write_text("a caption")
    (root / "empty.txt").write_text(" ")
    (root / "none.txt").unlink()
    (root / "cut.png").write_bytes((root / "cut.png").read_bytes()[:60])
    (root / "latin.txt").write_bytes(b"caf\xe9")
    (root / "alone.txt").write_text("of nothing")
    found = skipped(source(f"folder?path={root}"))
    assert {name.removeprefix("set/") for name in found} == {
        "empty.png",
        "none.png",
        "cut.png",
        "latin.png",
        "alone.txt",
    }
    assert found["set/none.png"] == "the caption is missing"
    assert found["set/alone.txt"] == "there is no picture of this name"


@pytest.mark.parametrize("table", ["captions.jsonl", "metadata.jsonl", "metadata.csv"])
def test_a_table_gives_pictures_and_several_captions(tmp_path: Path, table: str) -> None:
    for name in ("a.png", "b.png", "c.png"):
        shot(tmp_path / name)
    rows: list[Mapping[str, Any]] = [
        {"file_name": "b.png", "text": "of b"},
        {"file_name": "a.png", "captions": ["one", "two"]},
        {"file_name": "gone.png", "text": "of nothing"},
        {"text": "nameless"},
        {"file_name": "c.png"},
    ]
    if table.endswith("jsonl"):
        lines = [json.dumps(row) for row in rows]
        (tmp_path / table).write_text("\n".join([*lines, "{broken", "", "  "]) + "\n")
    else:
        with open(tmp_path / table, "w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "text", "captions"])
            writer.writeheader()
            for row in rows:
                cell = json.dumps(row["captions"]) if "captions" in row else ""
                writer.writerow({**row, "captions": cell})
    data = source(f"folder?path={tmp_path}")
    assert data.example(0).prompt.text == "of b"
    assert draws(data, 1) == {"one", "two"}
    home = tmp_path.name
    expected = {
        f"{home}/gone.png": "the picture is missing",
        f"{home}/{table}:4": "the row has no file_name",
        f"{home}/c.png": "the caption is empty",
    }
    if table.endswith("jsonl"):
        expected[f"{home}/{table}:6"] = "the line is no JSON object"
    assert skipped(data) == expected


@pytest.mark.parametrize("table", ["captions.jsonl", "metadata.csv"])
def test_a_table_may_begin_with_a_byte_order_mark(tmp_path: Path, table: str) -> None:
    """Spreadsheets write one in front of the first column's name."""
    shot(tmp_path / "a.png")
    content = '{"file_name": "a.png", "text": "of a"}\n'
    if table.endswith("csv"):
        content = "file_name,text\na.png,of a\n"
    (tmp_path / table).write_text(content, encoding="utf-8-sig")
    assert source(f"folder?path={tmp_path}").example(0).prompt.text == "of a"


def test_the_table_of_renders_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    renders(tmp_path, {"aa": ["a mug"]}, views=1)
    table = tmp_path / "metadata.csv"
    table.write_text(table.read_text(), encoding="utf-8-sig")
    assert source(f"renders?path={tmp_path}").example(0).prompt.text == "a mug"


def renders(root: Path, assets: Mapping[str, Any], views: int = 2) -> None:
    """TRELLIS's layout; captions None leaves the asset out of the table."""
    with open(root / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sha256", "file_identifier", "aesthetic_score", "captions", "rendered"])
        for name, captions in assets.items():
            if captions is not None:
                writer.writerow([name, f"mug/{name}.blend", 5.1, json.dumps(captions), True])
    for number, name in enumerate(assets):
        frames = []
        for view in range(views):
            shot(root / "renders" / name / f"{view:03d}.png", 10 * number + view)
            frames.append({"file_path": f"{view:03d}.png", "camera_angle_x": 0.7})
        (root / "renders" / name / "transforms.json").write_text(json.dumps({"frames": frames}))


def test_renders_draw_one_of_an_asset_s_captions_per_epoch(tmp_path: Path) -> None:
    renders(tmp_path, {"aa": ["a long red mug", "a mug"], "bb": ["a chair"]})
    data = source(f"renders?path={tmp_path}&views=2")
    assert [data.example(k).identifier for k in range(len(data))] == [
        f"renders/{asset}/{view}" for asset in ("aa", "bb") for view in (0, 1)
    ]
    assert [int(np.asarray(data.example(k).image)[0, 0, 0]) for k in range(4)] == [0, 1, 10, 11]
    assert draws(data, 0) == draws(data, 1) == {"a long red mug", "a mug"}
    both = [[data.prompt_only(k, epoch).prompt.text for epoch in range(50)] for k in (0, 1)]
    assert both[0] != both[1]
    other = source(f"renders?path={tmp_path}&views=2&seed=1")
    assert [other.prompt_only(0, epoch).prompt.text for epoch in range(50)] != both[0]


def test_captions_of_renders_may_lie_with_the_asset(tmp_path: Path) -> None:
    renders(tmp_path, {"aa": [], "bb": [], "cc": [], "dd": []}, views=1)
    (tmp_path / "metadata.csv").unlink()
    home = tmp_path / "renders"
    (home / "aa" / "captions.json").write_text('["one", "two"]')
    (home / "bb" / "captions.txt").write_text("three\n\nfour\n")
    (home / "cc" / "captions.json").write_text("[")
    data = source(f"renders?path={home}")
    assert draws(data, 0) == {"one", "two"}
    assert draws(data, 1) == {"three", "four"}
    found = skipped(data)
    assert set(found) == {"renders/cc/0", "renders/dd/0"}
    assert found["renders/dd/0"] == "the caption is missing"


def test_bad_renders_are_counted_and_named(tmp_path: Path) -> None:
    names = ("good", "untold", "lost", "bent", "short", "cut", "gone")
    renders(tmp_path, {name: None if name == "untold" else ["it"] for name in names})
    home = tmp_path / "renders"
    (home / "lost" / "transforms.json").unlink()
    (home / "bent" / "transforms.json").write_text('{"frames": [{}, {}]}')
    (home / "short" / "transforms.json").write_text('{"frames": [{"file_path": "./000"}]}')
    for view in range(2):
        path = home / "cut" / f"{view:03d}.png"
        path.write_bytes(path.read_bytes()[:50])
        (home / "gone" / f"{view:03d}.png").unlink()
    found = skipped(source(f"renders?path={tmp_path}&views=2"))
    assert Counter(name.split("/")[1] for name in found) == {
        "untold": 2,
        "lost": 2,
        "bent": 2,
        "short": 1,
        "cut": 2,
        "gone": 2,
    }
    assert found["renders/short/1"] == "there is no view 1, only 1"
    assert found["renders/gone/0"] == "the picture is missing"


def test_transparent_renders_stand_on_black_or_white(tmp_path: Path) -> None:
    renders(tmp_path, {"aa": ["it"]}, views=1)
    cut = Image.new("RGBA", (24, 24), (90, 90, 90, 0))
    cut.save(tmp_path / "renders" / "aa" / "000.png")
    for background, level in (("", 0), ("&background=white", 255)):
        example = source(f"renders?path={tmp_path}{background}").example(0)
        assert (np.asarray(example.image) == level).all()


def test_toys4k_is_named_by_class_in_the_order_of_its_table(tmp_path: Path) -> None:
    renders(tmp_path, {"ff": ["a mug", "it"], "aa": ["another"], "cc": None})
    with open(tmp_path / "metadata.csv", "a") as file:
        file.write('unrendered,car/x.blend,1,"[]",False\n')
    data = source(f"toys4k?path={tmp_path}")
    assert [data.example(k).identifier for k in range(len(data))] == [
        "toys4k/mug/ff/0",
        "toys4k/mug/aa/0",
    ]
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(ModalignError, match="no metadata.csv"):
        source(f"toys4k?path={tmp_path}")


def test_coco_draws_one_of_a_picture_s_captions(tmp_path: Path) -> None:
    notes: dict[str, Any] = {
        "images": [{"id": k, "file_name": f"{k:012d}.jpg"} for k in (7, 3, 9, 11)],
        "annotations": [
            {"image_id": 3, "id": 1, "caption": "one "},
            {"image_id": 7, "id": 2, "caption": "seven"},
            {"image_id": 3, "id": 3, "caption": "eins"},
            {"image_id": 11, "id": 4, "caption": "eleven"},
            {"image_id": 99, "id": 5, "caption": "unlisted"},
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps(notes))
    for number in (3, 7, 9):
        shot(tmp_path / "val2017" / f"{number:012d}.jpg")
    data = source(f"coco?path={tmp_path}")
    assert data.example(0).prompt.text == "seven"
    assert data.example(0).identifier == "coco/val2017/000000000007.jpg"
    assert draws(data, 1) == {"one", "eins"}
    assert skipped(data) == {
        "coco/val2017/000000000009.jpg": "the caption is missing",
        "coco/val2017/000000000011.jpg": "the picture is missing",
        "coco/val2017/99": "the picture is missing",
    }
    with pytest.raises(ModalignError, match="path is the folder above"):
        source(f"coco?path={tmp_path}&split=train2017")
    (tmp_path / "annotations" / "captions_val2017.json").write_text("[]")
    with pytest.raises(ModalignError, match="holds no captions of COCO"):
        source(f"coco?path={tmp_path}")


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows: two captions, one, a damaged picture, no caption, no picture."""
    arrow = importlib.import_module("pyarrow")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    pictures = [png(10), png(20), png(30)[:40], png(40), None]
    table = arrow.table(
        {
            "image": [{"bytes": content, "path": None} for content in pictures],
            "texts": [["one", "two"], ["three"], ["four"], [], ["five"]],
        }
    )
    importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_local_parquet_needs_no_network(parquet: Path) -> None:
    data = source(f"hub?path={parquet}&caption=texts")
    assert len(data) == 5
    assert (np.asarray(data.example(1).image) == 20).all()
    assert data.example(1).identifier == "rows.parquet/train/1"
    found = {data.prompt_only(0, epoch).prompt.text for epoch in range(50)}
    assert found == {"one", "two"}
    reasons = skipped(data)
    assert set(reasons) == {f"rows.parquet/train/{k}" for k in (2, 3, 4)}
    assert reasons["rows.parquet/train/4"] == "the picture is missing"
    with pytest.raises(ModalignError, match=r"no column 'text'\. Did you mean 'texts'"):
        source(f"hub?path={parquet}")


def test_pictures_of_a_saved_data_set_stay_encoded_until_asked_for(
    parquet: Path, tmp_path: Path
) -> None:
    """A truncated picture that `datasets` decoded itself would stop the run."""
    datasets = importlib.import_module("datasets")
    rows = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": png(5), "path": None}, {"bytes": png(6)[:40], "path": None}],
            "text": ["a", "b"],
        },
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )
    rows.save_to_disk(str(tmp_path / "saved"))
    data = source(f"hub?path={tmp_path / 'saved'}")
    assert (np.asarray(data.example(0).image) == 5).all()
    with pytest.raises(SampleError, match="saved/train/1: the bytes are no picture"):
        data.example(1)


def test_the_hub_without_a_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> object:
        raise ConnectionError("Couldn't reach 'lab/pairs' on the Hub\nlong trace")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(ModalignError, match="is there a network") as refused:
        source("hub?repository=lab/pairs")
    assert "\n" not in str(refused.value)
    for text in ("hub", "hub?repository=a/b&path=c"):
        with pytest.raises(ModalignError, match="either repository="):
            source(text)
    with pytest.raises(ModalignError, match="no file at"):
        source("hub?path=/nowhere/*.parquet")


@pytest.mark.parametrize("name", ["folder", "renders", "toys4k", "coco", "webdataset"])
def test_a_path_with_nothing_in_it_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ModalignError) as refused:
            source(f"{name}?path={path}")
        assert "\n" not in str(refused.value)
        assert os.fspath(tmp_path) in str(refused.value)


def test_every_reader_is_registered() -> None:
    names = {"coco", "folder", "hub", "renders", "toybox", "toys4k", "webdataset"}
    assert names <= set(installed().catalogue.datasets)
