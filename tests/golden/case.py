"""One golden entry: a folder of reference numbers, as `index.json` lists it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """An entry of an index: where it lies, what kind it is, how close is close enough.

    `tolerance` is {"atol", "rtol"}; `tolerance_overrides` maps fnmatch patterns of output names
    to other tolerances, the first match wins.
    """

    root: Path
    path: str
    kind: str
    tolerance: Mapping[str, float]
    config_file: str
    files: tuple[str, ...]
    tolerance_overrides: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.root / self.path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The entry's own configuration: dimensions, seeds, cases. Nothing else may be assumed."""
        content: dict[str, Any] = json.loads((self.folder / self.config_file).read_text())
        return content

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """The tensors of `<stem>.safetensors`; empty where the entry has no such file."""
        path = self.folder / f"{stem}.safetensors"
        return load_file(path) if path.exists() else {}

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return self.tensors("inputs")

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return self.tensors("outputs")

    @cached_property
    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors("state_dict")


def numbered(names: Iterable[str]) -> list[str]:
    """Names in order, numbers within them by value: view2 before view10."""

    def order(name: str) -> list[tuple[str, int]]:
        parts = re.split(r"(\d+)", name)
        return list(zip(parts[::2], [*map(int, parts[1::2]), -1], strict=True))

    return sorted(names, key=order)


Runner = Callable[[Case], Mapping[str, Tensor]]
"""Computes an entry's outputs with modalign's code, under the names the entry uses."""
