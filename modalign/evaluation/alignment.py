"""Alignment sample by sample: metrics per group, and the rank of the right item in a gallery.

The shape of GAP3D's Tables 1 and 2 (arXiv:2605.28995), with every sample counted once and ranks
sorted; its R@1 and R@5 were cut from an unsorted list, so only R@10 compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from modalign.evaluation.report import Table
from modalign.evaluation.results import Values
from modalign.metrics.alignment import METRICS
from modalign.metrics.retrieval import pooled, ranks, recall_at
from modalign.tokens import TokenStream

METRIC_NAMES = {"cosine": "cos", "mse": "MSE", "norm_ratio": "norm"}
RECALLS = (1, 5, 10)


class Gallery:
    """Real tokens (G, K, D) of held-out samples, to compare predictions of the same samples with.

    The query of a sample is the pooled prediction, the items are the pooled real tokens of all
    samples, one group at a time.
    """

    def __init__(self, stream: TokenStream) -> None:
        self.stream = {name: tokens.float().cpu() for name, tokens in stream.items()}
        self._items = {name: pooled(tokens) for name, tokens in self.stream.items()}  # (G, D)

    def __len__(self) -> int:
        return len(next(iter(self.stream.values())))

    @torch.no_grad()
    def compare(self, predicted: TokenStream, samples: Sequence[int]) -> list[Values]:
        """{group: {metric: value, "rank": 1 or more}} of each of `samples`, predicted (B, K, D)."""
        right = torch.tensor(samples)
        ids = torch.arange(len(self))
        results: list[dict[str, dict[str, float]]] = [{} for _ in samples]
        for name, target in self.stream.items():
            tokens = predicted[name].float().cpu()
            found = ranks(pooled(tokens), self._items[name], right, ids)
            for k, sample in enumerate(samples):
                one, real = tokens[k : k + 1], target[sample : sample + 1]
                values = {
                    metric: function(one, real).item() for metric, function in METRICS.items()
                }
                results[k][name] = {**values, "rank": int(found[k])}
        return list(results)

    def tables(self, rows: Mapping[str, Sequence[Values]], domain: str) -> list[Table]:
        """Alignment and retrieval of rows measured against this gallery."""
        groups = tuple(self.stream)
        means = {name: summary(values) for name, values in rows.items()}
        return [
            Table(
                title=f"Alignment, {domain}, {len(self)} samples",
                columns=[f"{group} {text}" for group in groups for text in METRIC_NAMES.values()],
                rows=means,
                notes=["cos: higher is better; MSE: 0 is ideal; norm: ratio of norms, 1 is ideal."],
            ),
            Table(
                title=f"Retrieval, {domain}, gallery of {len(self)}",
                columns=[f"{group} R@{k}" for group in groups for k in RECALLS],
                rows=means,
                digits=1,
                notes=[
                    "Share of samples, in %, whose own real tokens are among the first k of the "
                    f"gallery; chance is {100 / len(self):.1f} % for R@1."
                ],
            ),
        ]


def summary(results: Sequence[Values]) -> dict[str, float]:
    """Means over samples by "<group> <metric>", and recall by "<group> R@<k>"."""
    found: dict[str, float] = {}
    for group in results[0]:
        for metric, text in METRIC_NAMES.items():
            values = [result[group][metric] for result in results]
            found[f"{group} {text}"] = sum(values) / len(values)
        places = torch.tensor([result[group]["rank"] for result in results])
        found |= {f"{group} {name}": share for name, share in recall_at(places, RECALLS).items()}
    return found


def stage_effects(domains: Mapping[str, Mapping[str, Sequence[Values]]]) -> Table:
    """What the second stage of each recipe changed: its row less that of `<recipe>-stage1`.

    `domains` are rows of results by domain.
    """
    columns: list[str] = []
    rows: dict[str, dict[str, float]] = {}
    for domain, results in domains.items():
        for name, values in results.items():
            if f"{name}-stage1" not in results:
                continue
            after, before = summary(values), summary(results[f"{name}-stage1"])
            changes = {
                column: after[column] - before[column]
                for column in after
                if column.endswith((" cos", " R@10"))
            }
            rows[f"{name}, {domain}"] = changes
            columns = list(changes)
    return Table(
        title="Second stage less first",
        columns=columns,
        rows=rows,
        notes=["Above 0 where the second stage helped. R@10 in percentage points."],
    )
