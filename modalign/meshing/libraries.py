"""The libraries of the extra `mesh`, loaded where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from modalign.errors import ModalignError


def library(name: str, purpose: str) -> Any:
    """The module `name`.

    Raises:
        ModalignError: it is not installed; says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModalignError(
            f"{purpose} needs {name}, which cannot be imported here: pip install modalign[mesh]"
        ) from error


def require(purpose: str) -> None:
    """Raise what `library` raises now, rather than after long work."""
    for name in ("xatlas", "fast_simplification", "pymeshfix"):
        library(name, purpose)
