"""What `modalign list`, `info` and `plugin check` show."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from modalign import (
    hookimpl,
    installed,
)
from tests.modalign import stubs
from tests.modalign.cli.outcomes import Command, refused


def test_list_shows_every_registered_name(command: Command) -> None:
    code, out, _ = command("list")
    assert code == 0
    for kind, entries in vars(installed().catalogue).items():
        assert all(name in out for name in entries), kind


def test_list_names_plugins_that_failed_or_clash(command: Command, use: Any) -> None:
    class Clash:
        @hookimpl
        def modalign_vlms(self) -> list[Any]:
            return [replace(stubs.registry().get("vlms", "stub-vlm"), summary="another")]

    class Wrong:
        @hookimpl
        def modalign_datasets(self) -> list[Any]:
            return ["coco"]

    known = stubs.registry(more=[Wrong()])
    use(known)
    _, out, _ = command("list")
    assert "plugin Wrong failed to load: TypeError: modalign_datasets must return" in out
    clashing = stubs.registry(more=[Clash()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modalign.registry.installed", lambda: clashing)
        _, out, _ = command("list")
    assert "vlm stub-vlm is claimed by stubs and Clash; neither is used" in out


def test_info_shows_a_recipe_with_its_parts(command: Command) -> None:
    code, out, _ = command("info", "gap3d")
    assert code == 0
    for part in (
        "recipe gap3d",
        "flow-matching (weights cls 0.3, registers 0.3, patches 0.4)",
        "dinov2-vitl14-reg/layernorm@518: cls 1 of 1024, registers 4 of 1024, patches 37x37",
        "generator trellis-image-large",
    ):
        assert part in out
    assert re.search(r"^license +MIT", out, flags=re.MULTILINE)
    assert "<function" not in out


def test_info_shows_a_licence_that_forbids_commerce(command: Command) -> None:
    _, out, _ = command("info", "flux-redux")
    assert re.search(r"^license +FLUX\.1 \[dev\] Non-Commercial License", out, flags=re.MULTILINE)
    assert "NON-COMMERCIAL" in command("list")[1]


def test_info_shows_the_contract_of_a_pair(command: Command) -> None:
    code, out, _ = command("info", "dinov2-vitl14-reg", "trellis-image-large")
    assert code == 0
    for part in ("works", "the same space", "518 px", "zeros", "MIT", "Apache-2.0"):
        assert part in out
    _, out, _ = command("info", "dinov2-mini-reg", "trellis-image-large")
    assert "refused" in out
    assert "different networks" in out
    refused(command("info", "gap3d", "trellis-mini"), "unknown encoder 'gap3d'")


def test_list_shows_all_pairs_as_markdown(command: Command) -> None:
    code, out, _ = command("list", "--pairs")
    assert code == 0
    assert "| `dinov2-vitl14-reg` |" in out
    assert "Each line holds for every language model: `qwen2.5-vl-3b`" in out


def test_info_says_which_parts_are_not_installed(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = stubs.registry(stubs.RECIPE.derive(encoder="absent-encoder"))
    monkeypatch.setattr("modalign.registry.installed", lambda: registry)
    code, out, _ = command("info", "stub")
    assert code == 0
    assert "'absent-encoder' is not installed" in out


def test_plugin_check_runs_the_contract(command: Command, use: Any) -> None:
    use(stubs.registry())
    assert command("plugin", "check", "stub-encoder")[:2] == (
        0,
        "encoder stub-encoder: contract kept\n",
    )

    class Careless(stubs.Generator):
        def generate(self, stream: Any, **options: Any) -> Any:
            return super().generate(stream, seed=0)

    use(stubs.registry(generator={"build": stubs.giving(Careless())}))
    refused(
        command("plugin", "check", "stub-generator"),
        "generator 'stub-generator' breaks the contract: another seed gives the same asset",
    )
    refused(command("plugin", "check", "stub"), "'stub' is a recipe; only encoders")
