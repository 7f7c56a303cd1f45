"""Work for processes that import little."""

from __future__ import annotations

import os


def labour(job: str) -> str | None:
    """Fails, or ends its process, on jobs called so."""
    if job == "kill":
        os._exit(3)
    if job == "raise":
        raise OSError("disk full")
    return "it is bad" if job == "bad" else None
