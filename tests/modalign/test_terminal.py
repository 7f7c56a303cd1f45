"""What the command shows of a value."""

from __future__ import annotations

from typing import Any

import pytest

from modalign import DiTConfig, Progress, Ref
from modalign.terminal import describe, stages
from tests.modalign import stubs


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (1e-5, "1e-05"),
        (("transformers", "timm"), "transformers, timm"),
        ((0.0, 1.0), "(0.0, 1.0)"),
        (stubs.STREAM, "stub/layernorm@28: cls 1 of 4, patches 2x3 of 4"),
        (Ref(name="flow-matching"), "flow-matching"),
        (Ref(name="a", options={"weights": {"cls": 0.5}}), "a (weights cls 0.5)"),
        (
            DiTConfig(hidden_size=16, depth=1, num_heads=2),
            "hidden_size 16, depth 1, num_heads 2, multiple_of 256, norm_eps 1e-05",
        ),
    ],
)
def test_values_are_described_in_words(value: Any, shown: str) -> None:
    assert describe(value) == shown


def test_progress_is_silent_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with stages() as report:
        report(Progress("alignment", 1, 2))
        report(Progress("alignment", 2, 2))
    assert capsys.readouterr() == ("", "")


def test_progress_shows_a_bar_per_stage_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with stages() as report:
        for step in (1, 2):
            report(Progress("alignment", step, 2))
        report(Progress("sparse structure", 1, 3))
    out, err = capsys.readouterr()
    assert out == ""
    for part in ("alignment", "2/2", "sparse structure", "1/3"):
        assert part in err
