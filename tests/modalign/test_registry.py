"""Discovery and look-up."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace
from typing import Any

import pytest

from modalign import DatasetSpec, Registry, RegistryError, hookimpl
from modalign.registry import missing_modules


def dataset(name: str) -> DatasetSpec:
    return DatasetSpec(name=name, build=lambda: None)  # type: ignore[arg-type, return-value]


def plugin(*names: str) -> Any:
    class Plugin:
        @hookimpl
        def modalign_datasets(self) -> list[DatasetSpec]:
            return [dataset(name) for name in names]

    return Plugin()


def test_an_unknown_name_offers_the_closest_and_lists_all() -> None:
    registry = Registry([("one", plugin("toybox", "coco"))])
    with pytest.raises(RegistryError) as error:
        registry.get("datasets", "toybx")
    assert str(error.value) == (
        "unknown dataset 'toybx'. Did you mean 'toybox'? Available: coco, toybox."
    )


def test_two_claims_on_one_name_are_both_named_and_neither_is_used() -> None:
    registry = Registry([("one", plugin("coco")), ("two", plugin("coco", "own"))])
    with pytest.raises(RegistryError, match="claimed by one and two"):
        registry.get("datasets", "coco")
    assert registry.get("datasets", "own").name == "own"


def test_a_plugin_that_fails_to_import_is_named_and_the_rest_survive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def explode() -> Any:
        raise ImportError("no module named 'spconv'")

    points = [
        SimpleNamespace(name="bad", value="bad", dist=None, load=explode),
        SimpleNamespace(name="good", value="good", dist=None, load=lambda: plugin("coco")),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    registry = Registry.discover()
    assert registry.get("datasets", "coco").name == "coco"
    with pytest.raises(RegistryError, match="Plugin bad failed to load: ImportError.*spconv"):
        registry.get("datasets", "laion")


def test_a_plugin_whose_hook_returns_the_wrong_thing_is_named() -> None:
    class Wrong:
        @hookimpl
        def modalign_datasets(self) -> list[Any]:
            return ["toybox"]

    registry = Registry([("wrong", Wrong()), ("right", plugin("coco"))])
    assert "must return a list of DatasetSpec, got str" in registry.failures["wrong"]
    assert set(registry.catalogue.datasets) == {"coco"}


def test_a_misspelt_hook_is_a_failure_not_a_silence() -> None:
    class Misspelt:
        @hookimpl
        def modalign_dataset(self) -> list[DatasetSpec]:
            return [dataset("coco")]

    registry = Registry([("misspelt", Misspelt())])
    assert "modalign_dataset" in registry.failures["misspelt"]


def test_find_looks_in_every_kind() -> None:
    registry = Registry([("one", plugin("coco"))])
    assert [kind for kind, _ in registry.find("coco")] == ["datasets"]
    with pytest.raises(RegistryError, match="nothing is called 'cocoa'. Did you mean 'coco'"):
        registry.find("cocoa")


def test_a_search_in_all_kinds_names_two_claims_and_what_failed_to_load() -> None:
    class Broken:
        @hookimpl
        def modalign_datasets(self) -> list[DatasetSpec]:
            raise ImportError("no module named 'spconv'")

    registry = Registry([("one", plugin("coco")), ("two", plugin("coco")), ("bad", Broken())])
    with pytest.raises(RegistryError, match="'coco' is claimed by one and two"):
        registry.find("coco")
    with pytest.raises(RegistryError, match="Plugin bad failed to load: ImportError.*spconv"):
        registry.find("laion")


def test_a_module_inside_a_package_that_is_not_there_is_missing() -> None:
    required = ("json", "importlib.metadata", "no_such_package.ops", "json.no_such_module")
    assert missing_modules(required) == ["no_such_package.ops", "json.no_such_module"]
