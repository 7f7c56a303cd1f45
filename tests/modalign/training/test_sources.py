"""Data sets by the words of a command."""

from __future__ import annotations

from typing import Any

import pytest

from modalign.errors import ModalignError, RegistryError
from modalign.training.sources import parse, sources
from tests.modalign.training import runs


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("toybox", ("toybox", {}, 1.0)),
        ("toybox:0.25", ("toybox", {}, 0.25)),
        ("toybox?domain=asset&views=4:3", ("toybox", {"domain": "asset", "views": 4}, 3.0)),
        ("tars?path=s3://x/a.tar", ("tars", {"path": "s3://x/a.tar"}, 1.0)),
    ],
)
def test_a_data_spec_has_a_name_options_and_a_ratio(spec: str, expected: Any) -> None:
    assert parse(spec) == expected


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("toybox:0", "mixing ratio 0; expected one above 0"),
        ("toybox?views", "'views' is no option; write key=value"),
        ("pairs?bat=3", r"refuses \{'bat': 3\}: .*unexpected keyword"),
    ],
)
def test_a_data_spec_that_says_nothing_is_refused(spec: str, said: str) -> None:
    with pytest.raises(ModalignError, match=said):
        sources([spec.replace("toybox", "pairs")], runs.registry())


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RegistryError, match="pairs"):
        sources(["pears"], runs.registry())
