"""Reference numbers: every entry of every root, at its own tolerance.

`MODALIGN_GOLDEN=<root>[os.pathsep<root>...] pytest tests/golden` runs other roots; without it the
committed fixtures run. A root holds an `index.json`; only what it lists is assumed to exist.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import os
import pkgutil
from pathlib import Path

import pytest
import torch

from tests.golden import runners
from tests.golden.case import Case, Runner

FIXTURES = Path(__file__).parent / "fixtures"


def roots() -> list[Path]:
    named = os.environ.get("MODALIGN_GOLDEN", "")
    return [Path(part) for part in named.split(os.pathsep) if part] or [FIXTURES]


def cases() -> list[Case]:
    found = []
    for root in roots():
        for entry in json.loads((root / "index.json").read_text()):
            found.append(
                Case(
                    root=root,
                    path=entry["path"],
                    kind=entry["kind"],
                    tolerance=entry["tolerance"],
                    config_file=entry["config"],
                    files=tuple(entry["files"]),
                    tolerance_overrides=entry.get("tolerance_overrides", {}),
                )
            )
    return found


def all_runners() -> dict[str, Runner]:
    merged: dict[str, Runner] = {}
    for module in pkgutil.iter_modules(runners.__path__, runners.__name__ + "."):
        merged.update(getattr(importlib.import_module(module.name), "RUNNERS", {}))
    return merged


RUNNERS = all_runners()


def tolerance_for(case: Case, name: str) -> dict[str, float]:
    for pattern, override in case.tolerance_overrides.items():
        if fnmatch.fnmatchcase(name, pattern):
            return dict(override)
    return dict(case.tolerance)


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.kind}:{case.path}")
def test_outputs_equal_the_reference(case: Case) -> None:
    if case.kind not in RUNNERS:
        pytest.skip(f"no runner for kind {case.kind!r} yet")
    outputs = RUNNERS[case.kind](case)
    missing = sorted(set(case.expected) - set(outputs))
    assert not missing, f"{case.path}: the runner computed nothing for {missing}"
    for name, expected in case.expected.items():
        actual = outputs[name].detach()
        assert actual.shape == expected.shape, f"{case.path}: {name}"
        torch.testing.assert_close(
            actual.to(torch.float64),
            expected.to(torch.float64),
            **tolerance_for(case, name),
            msg=lambda text, name=name: f"{case.path}: {name}: {text}",
        )
