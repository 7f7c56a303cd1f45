"""Data as it is written on a command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from modalign import DatasetSpec, ModalignError, Registry, RegistryError, hookimpl
from modalign.data import Cached, fill_cache, parse_source
from tests.modalign import stubs
from tests.modalign.data.test_token_cache import SPEC
from tests.modalign.data.worlds import Finite


class World(Finite):
    def __init__(
        self,
        path: str | Sequence[str],
        size: int = 3,
        *,
        kind: Literal["a", "b"] = "a",
        deep: bool = False,
        share: float | None = None,
    ) -> None:
        super().__init__(size)
        if size > 100:
            raise ValueError("size 101 is too much; use at most 100")
        self.options = (path, size, kind, deep, share)


def unread(size: Unknown = 2) -> Finite:  # type: ignore[name-defined]  # noqa: F821
    return Finite(size)


class Plugin:
    @hookimpl
    def modalign_datasets(self) -> list[DatasetSpec]:
        return [
            DatasetSpec(name="world", build=World),
            DatasetSpec(name="free", build=lambda **options: Finite(len(options))),
            DatasetSpec(name="unread", build=unread),
            DatasetSpec(name="heavy", build=World, requires=("no_such_library",)),
        ]


REGISTRY = Registry([("worlds", Plugin())])


@pytest.mark.parametrize(
    ("text", "options", "ratio"),
    [
        ("world?path=/x", ("/x", 3, "a", False, None), 1.0),
        ("world?path=/x/*.tar:0.8", ("/x/*.tar", 3, "a", False, None), 0.8),
        ("world?path=/x&size=7&kind=b&deep=true&share=.5:2", ("/x", 7, "b", True, 0.5), 2.0),
        ("world?path=/x&path=/y", (["/x", "/y"], 3, "a", False, None), 1.0),
        ("world?path=C:/x", ("C:/x", 3, "a", False, None), 1.0),
        ("world?path=/a%26b%3D%3A1", ("/a&b=:1", 3, "a", False, None), 1.0),
        ("world?path=/a+b=c", ("/a+b=c", 3, "a", False, None), 1.0),
    ],
)
def test_options_get_the_types_that_the_builder_declares(
    text: str, options: tuple[Any, ...], ratio: float
) -> None:
    dataset, found = parse_source(text, REGISTRY)
    assert isinstance(dataset, World)
    assert (dataset.options, found) == (options, ratio)


def test_a_builder_of_any_options_gets_them_as_text() -> None:
    dataset, _ = parse_source("free?a=1&b=2", REGISTRY)
    assert isinstance(dataset, Finite)
    assert len(dataset) == 2


def test_annotations_that_cannot_be_read_matter_to_options_alone() -> None:
    """As names imported under TYPE_CHECKING."""
    dataset, _ = parse_source("unread", REGISTRY)
    assert isinstance(dataset, Finite)
    with pytest.raises(ModalignError, match="'unread' cannot take options: name 'Unknown'"):
        parse_source("unread?size=3", REGISTRY)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("world", "needs path; write world?path=..."),
        ("world?", "write key=value"),
        ("world?path", "must be written key=value"),
        ("world?pth=/x", "Did you mean 'path'"),
        ("world?path=/x&size=many", "option size='many' of dataset 'world': input should be"),
        ("world?path=/x&size=1&size=2", "option size="),
        ("world?path=/x&kind=c", "input should be 'a' or 'b'"),
        ("world?path=/x&size=101", "use at most 100"),
        ("world?path=/x:0", "must be a positive number"),
        ("world?path=/x:nan", "must be a positive number"),
        ("world:half", "is not a number"),
        ("world?path=/x&missing=skip", "without cache=FOLDER"),
        ("world?path=/x&cache=/nowhere", "no token cache at /nowhere"),
        ("heavy?path=/x", "pip install modalign"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_line(text: str, said: str) -> None:
    with pytest.raises(ModalignError) as refused:
        parse_source(text, REGISTRY)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_data_set_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(RegistryError, match="Did you mean 'world'"):
        parse_source("wrld?path=/x", REGISTRY)


def test_any_data_set_may_be_given_a_cache(tmp_path: Path) -> None:
    fill_cache(tmp_path / "cache", Finite(3), "world", stubs.Encoder(), SPEC)
    text = f"world?path=/x&cache={tmp_path / 'cache'}&missing=skip:0.5"
    dataset, ratio = parse_source(text, REGISTRY)
    assert isinstance(dataset, Cached)
    assert isinstance(dataset.dataset, World)
    assert (dataset.missing, ratio) == ("skip", 0.5)
    assert dataset.sample(1)[1] is not None


def test_the_toy_world_is_a_source() -> None:
    dataset, ratio = parse_source("toybox?domain=asset&size=32&views=4:0.25")
    assert ratio == 0.25
    example = dataset.example(5)
    assert example.image is not None
    assert example.image.size == (32, 32)
    assert example.identifier == "toybox/train/1/asset/1"
    with pytest.raises(ModalignError, match="'scene' or 'asset'"):
        parse_source("toybox?domain=sea")
