"""The command, run in an empty folder, on whatever is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modalign import (
    Registry,
    cli,
)
from tests.modalign import stubs
from tests.modalign.cli.outcomes import Command, Outcome


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Runs `modalign ARGUMENTS` in an empty folder; returns exit code, stdout and stderr."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["modalign", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as done:
            code = done.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Registry], list[str]]:
    """Puts a registry in place of what is installed; returns options that name stub weights."""

    def replace_installed(registry: Registry) -> list[str]:
        monkeypatch.setattr("modalign.registry.installed", lambda: registry)
        weights = stubs.checkpoint(tmp_path / "stub.safetensors", registry)
        return ["--recipe", "stub", "--checkpoint", str(weights)]

    return replace_installed
