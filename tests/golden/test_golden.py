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
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.golden import runners
from tests.golden.case import Case, Runner

FIXTURES = Path(__file__).parent / "fixtures"


def roots() -> list[Path]:
    named = os.environ.get("MODALIGN_GOLDEN", "")
    return [Path(part) for part in named.split(os.pathsep) if part] or [FIXTURES]


def cases() -> list[Case]:
    return [case for root in roots() for case in cases_of(root)]


def cases_of(root: Path) -> list[Case]:
    index = root / "index.json"
    if not index.is_file():
        raise pytest.UsageError(f"no {index}; MODALIGN_GOLDEN names folders that have one")
    return [
        Case(
            root=root,
            path=entry["path"],
            kind=entry["kind"],
            tolerance=entry["tolerance"],
            config_file=entry["config"],
            files=tuple(entry["files"]),
            tolerance_overrides=entry.get("tolerance_overrides", {}),
        )
        for entry in json.loads(index.read_text())
    ]


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
    # A root may list kinds of what is not built yet; it is told apart from a failure, by name.
    if case.kind not in RUNNERS:
        pytest.skip(f"no runner for kind {case.kind!r} yet")
    compare(case)


def compare(case: Case) -> None:
    """The runner's outputs beside every expected one; an entry must say what it expects."""
    absent = [name for name in case.files if not (case.folder / name).is_file()]
    assert not absent, f"{case.path}: the index lists {absent}, which {case.folder} lacks"
    assert case.expected, f"{case.path}: no outputs to compare with"
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


def copied(path: str, to: Path) -> Case:
    """A committed entry in a root of its own."""
    (case,) = (case for case in cases_of(FIXTURES) if case.path == path)
    shutil.copytree(case.folder, to / path)
    return replace(case, root=to)


@pytest.mark.parametrize("missing", ["inputs.safetensors", "outputs.safetensors"])
def test_an_entry_without_a_listed_file_fails(tmp_path: Path, missing: str) -> None:
    case = copied("trellis/sparse_subdivide", tmp_path)
    (case.folder / missing).unlink()
    with pytest.raises(AssertionError, match=f"lists \\['{missing}'\\]"):
        compare(case)


def test_views_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """The second camera belongs to view10 where the first belongs to view2."""
    case = copied("trellis/gaussian_render_formula", tmp_path)
    file = case.folder / "outputs.safetensors"
    tensors = load_file(file)
    renamed = {
        f"view10{name[5:]}" if name[:5] == "view2" else name: tensors[name] for name in tensors
    }
    renamed = {
        f"view2{name[5:]}" if name[:5] == "view0" else name: renamed[name] for name in renamed
    }
    save_file(renamed, file)
    compare(case)


def test_an_entry_that_expects_nothing_fails(tmp_path: Path) -> None:
    case = copied("trellis/sparse_subdivide", tmp_path)
    (case.folder / "outputs.safetensors").unlink()
    with pytest.raises(AssertionError, match="no outputs to compare with"):
        compare(replace(case, files=()))


def rewritten(case: Case, stem: str, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a copied entry's file."""
    tensors = case.tensors(stem)
    change(tensors)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        case.folder / f"{stem}.safetensors",
    )


def test_an_entry_s_own_targets_say_its_registers_and_grid(tmp_path: Path) -> None:
    """Two registers and four rows of five: each token is normalised by itself."""
    case = copied("gap3d/07_softtokens_text", tmp_path)

    def fewer(tensors: dict[str, Tensor]) -> None:
        raw = tensors["target_features_raw"]
        tensors["target_features_raw"] = torch.cat([raw[:, :3], raw[:, 5:25]], dim=1)

    def cut(tensors: dict[str, Tensor]) -> None:
        tensors["target_reg"] = tensors["target_reg"][:, :2]
        tensors["target_patch"] = tensors["target_patch"][:, :, :4]

    rewritten(case, "inputs", fewer)
    rewritten(case, "outputs", cut)
    compare(case)


def test_a_training_step_has_the_weights_that_its_entry_states(tmp_path: Path) -> None:
    case = copied("gap3d/06b_train_step_one_dropped", tmp_path)
    weights = {"cls": 0.5, "reg": 0.1, "patch": 0.4}
    file = case.folder / case.config_file
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": weights}))

    def weighed(tensors: dict[str, Tensor]) -> None:
        parts = {name: tensors[f"loss_{name}"] for name in weights}
        tensors.clear()
        tensors["loss"] = sum(
            (weight * parts[name] for name, weight in weights.items()), torch.tensor(0.0)
        )

    rewritten(case, "outputs", weighed)
    compare(case)
