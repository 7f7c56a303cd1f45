"""What a call of the command came to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Outcome = tuple[int, str, str]
"""Exit code, stdout, stderr."""
Command = Callable[..., Outcome]


def refused(outcome: Outcome, *parts: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr with `parts`, no file left behind."""
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert list(Path.cwd().iterdir()) == []
