"""What evaluation suites are made of: rows measured sample by sample, baselines, reports."""

from __future__ import annotations

from modalign.evaluation.alignment import Gallery, stage_effects, summary
from modalign.evaluation.baselines import NearestText, unconditional
from modalign.evaluation.report import Report, Table
from modalign.evaluation.results import Results, Row, Values
from modalign.evaluation.rows import assembled, fingerprint, relatives

__all__ = [
    "Gallery",
    "NearestText",
    "Report",
    "Results",
    "Row",
    "Table",
    "Values",
    "assembled",
    "fingerprint",
    "relatives",
    "stage_effects",
    "summary",
    "unconditional",
]
