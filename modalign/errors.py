"""Errors a user can cause. Each message names the thing, what was got, what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ModalignError(Exception):
    """Anything modalign refuses to do; the command line prints it as one line and exits with 2."""


class RegistryError(ModalignError):
    """A name that no installed plugin knows, or that two plugins claim."""


class BuildError(ModalignError):
    """A recipe whose parts do not fit each other; the message lists every misfit."""


class WeightsError(ModalignError):
    """Weights that are missing, damaged, or of another model."""


class PromptError(ModalignError):
    """A prompt that cannot be read: empty, too long, or with an unusable picture."""


class SampleError(ModalignError):
    """One sample of a data set that cannot be used; training leaves its slot empty and goes on."""

    def __init__(self, identifier: str, reason: str) -> None:
        """`identifier` names the sample, with its file; `reason` is one line."""
        super().__init__(f"{identifier}: {reason}")
        self.identifier, self.reason = identifier, reason

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str]]:
        return type(self), (self.identifier, self.reason)


class GenerationError(ModalignError):
    """A stage that produced nothing usable, named in the message."""


class OutputError(ModalignError):
    """A result that cannot be written where the user asked."""


class TrainingError(ModalignError):
    """A training that cannot go on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the closest known names and lists all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    hint = f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
    return f"{hint} Available: {', '.join(names) or 'none'}."
