"""Discovery over entry points, and look-up by name with errors that teach."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any, TypeVar

import pluggy

from modalign import hookspecs
from modalign.errors import RegistryError, did_you_mean
from modalign.recipe import Recipe
from modalign.specs import (
    Catalogue,
    DatasetSpec,
    EncoderSpec,
    GeneratorSpec,
    ObjectiveSpec,
    SpaceMap,
    SuiteSpec,
    VLMSpec,
)

logger = logging.getLogger(__name__)

GROUP = "modalign"
KINDS: dict[str, type] = {
    "encoders": EncoderSpec,
    "vlms": VLMSpec,
    "generators": GeneratorSpec,
    "objectives": ObjectiveSpec,
    "recipes": Recipe,
    "datasets": DatasetSpec,
    "suites": SuiteSpec,
    "space_maps": SpaceMap,
}
SINGULAR = {kind: kind[:-1].replace("_", " ") for kind in KINDS}

Entry = TypeVar("Entry")


class Registry:
    """What is installed: a catalogue per kind, who provided each name, and who failed to load.

    One broken plugin does not hide the others: its failure is kept in `failures` and named in
    every look-up error. Two plugins that claim one name are both named, and neither is used.
    """

    def __init__(self, plugins: Iterable[tuple[str, Any]] = ()) -> None:
        """`plugins` are (distribution or module name, plugin object) pairs."""
        self.failures: dict[str, str] = {}
        self.owners: dict[tuple[str, str], str] = {}
        self.conflicts: dict[tuple[str, str], list[str]] = {}
        self._entries: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        for owner, plugin in plugins:
            self._add(owner, plugin)

    @classmethod
    def discover(cls) -> Registry:
        """All plugins of the entry-point group `modalign`, built-in and foreign alike."""
        registry = cls()
        found = importlib.metadata.entry_points(group=GROUP)
        for point in sorted(found, key=lambda point: (point.name, point.value)):
            owner = point.name if point.dist is None else f"{point.dist.name}:{point.name}"
            try:
                plugin = point.load()
            # A plugin is foreign code: whatever it raises must not take the others down.
            except Exception as error:  # noqa: BLE001
                registry._fail(owner, error)
                continue
            registry._add(owner, plugin)
        return registry

    @property
    def catalogue(self) -> Catalogue:
        """Every entry, by kind and name."""
        return Catalogue(**self._entries)

    def get(self, kind: str, name: str) -> Any:
        """The entry `name` of `kind`.

        Raises:
            RegistryError: no plugin has it, or two claim it. Names the closest matches, all that
                are available, and plugins that failed to load.
        """
        entries = self._entries[kind]
        self._refuse_conflict(kind, name)
        if name in entries:
            return entries[name]
        hint = did_you_mean(name, entries)
        raise RegistryError(f"unknown {SINGULAR[kind]} {name!r}.{hint}{self._broken()}")

    def find(self, name: str) -> list[tuple[str, Any]]:
        """(kind, entry) of every entry called `name`, in any kind.

        Raises:
            RegistryError: there is none, or two plugins claim it as one kind, as in `get`.
        """
        for kind in KINDS:
            self._refuse_conflict(kind, name)
        found = [
            (kind, entries[name]) for kind, entries in self._entries.items() if name in entries
        ]
        if not found:
            known = {name for entries in self._entries.values() for name in entries}
            hint = did_you_mean(name, known)
            raise RegistryError(f"nothing is called {name!r}.{hint}{self._broken()}")
        return found

    def _refuse_conflict(self, kind: str, name: str) -> None:
        if (kind, name) in self.conflicts:
            owners = " and ".join(self.conflicts[kind, name])
            raise RegistryError(
                f"{SINGULAR[kind]} {name!r} is claimed by {owners}; uninstall or rename one"
            )

    def _broken(self) -> str:
        """A sentence for each plugin that failed to load."""
        return "".join(
            f" Plugin {owner} failed to load: {why}." for owner, why in self.failures.items()
        )

    def _fail(self, owner: str, error: Exception) -> None:
        self.failures[owner] = f"{type(error).__name__}: {error}"
        logger.warning("plugin %s failed to load: %s", owner, self.failures[owner])

    def _add(self, owner: str, plugin: Any) -> None:
        # A manager of its own per plugin: a misspelt hook or a wrong return value is then
        # charged to the plugin that has it.
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        collected: dict[str, list[Any]] = {}
        try:
            manager.register(plugin, name=owner)
            manager.check_pending()
            for kind, record in KINDS.items():
                results = getattr(manager.hook, f"modalign_{kind}")()
                collected[kind] = [entry for result in results for entry in result]
                for entry in collected[kind]:
                    if not isinstance(entry, record):
                        raise TypeError(
                            f"modalign_{kind} must return a list of {record.__name__}, "
                            f"got {type(entry).__name__}"
                        )
        # Same reason as in `discover`: hooks are foreign code.
        except Exception as error:  # noqa: BLE001
            self._fail(owner, error)
            return
        for kind, entries in collected.items():
            for entry in entries:
                self._enter(kind, entry, owner)

    def _enter(self, kind: str, entry: Any, owner: str) -> None:
        key = (kind, entry.name)
        if key in self.owners and self.owners[key] != owner:
            self.conflicts.setdefault(key, [self.owners[key]]).append(owner)
            self._entries[kind].pop(entry.name, None)
            return
        self.owners[key] = owner
        self._entries[kind][entry.name] = entry


@cache
def installed() -> Registry:
    """The registry of this environment, discovered once per process."""
    return Registry.discover()


def missing_modules(requires: Iterable[str]) -> list[str]:
    """Those of `requires` that cannot be imported here.

    Nothing is imported to find out, but for the packages that a dotted name lies in.
    """
    return [name for name in requires if name not in sys.modules and not _is_there(name)]


def _is_there(name: str) -> bool:
    import importlib.util

    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a package that the name lies in
        return False
