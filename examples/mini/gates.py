"""Gates between the stages: measured, compared with what was asked for, kept in the repository."""

from __future__ import annotations

import json
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from trainer import LOGS


def report(stage: str, results: Mapping[str, float], asked: Mapping[str, float]) -> None:
    """Print a table and write `logs/gate-<stage>.json`; `asked` are lower bounds."""
    table = Table("measure", "found", "asked", "", title=f"gate: {stage}")
    for name, value in results.items():
        bound = asked.get(name)
        verdict = "" if bound is None else ("passed" if value >= bound else "MISSED")
        table.add_row(name, f"{value:.3f}", "" if bound is None else f">= {bound:.2f}", verdict)
    Console().print(table)
    content = {
        name: {"found": round(value, 4), "asked": asked.get(name)}
        for name, value in results.items()
    }
    (LOGS / f"gate-{stage}.json").write_text(json.dumps(content, indent=1) + "\n")
