"""Where the parts of a stock pipeline lie, and how one part is read: safetensors, no network."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from modalign_plugins.weights import sources
from safetensors import SafetensorError

from modalign import WeightsError

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER_CONFIG = "scheduler_config.json"


def located(
    owner: str, weights: str | Path, repositories: Mapping[str, Sequence[str]]
) -> list[Path]:
    """The folder of each repository, whose values are the files (glob patterns) it must hold.

    "pretrained" takes them from the Hub or its cache. A path is a folder laid out like the
    repository, or, for several, one that holds a folder per repository, called as its last part.

    Raises:
        WeightsError: files are missing; says which, of what, and how to get them.
    """
    alone = len(repositories) == 1
    folders, complaints = [], []
    for name, files in repositories.items():
        if weights == "pretrained":
            try:
                folders.append(sources.downloaded(owner, name, files))
            except WeightsError as error:
                complaints.append(str(error))
            continue
        folder = Path(weights) if alone else Path(weights) / name.split("/")[-1]
        missing = [pattern for pattern in files if not any(folder.glob(pattern))]
        if missing:
            complaints.append(
                f"{owner!r} needs {', '.join(missing)} of {name}, which {folder} lacks"
            )
        folders.append(folder)
    if complaints:
        raise WeightsError("; ".join(complaints))
    return folders


def model(
    model_class: Any, folder: Path, *, owner: str, device: str | torch.device, dtype: torch.dtype
) -> Any:
    """A frozen model of diffusers from its folder.

    Raises:
        WeightsError: a file is missing or damaged, or of another model.
    """
    try:
        with quiet():
            loaded, report = model_class.from_pretrained(
                folder,
                torch_dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=low_memory(),
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{owner!r} cannot read {folder}: {error}") from error
    if report["missing_keys"]:
        raise WeightsError(
            f"{owner!r} has {len(report['missing_keys'])} tensors that {folder} does not hold, "
            f"for example {sorted(report['missing_keys'])[0]!r}; are they of another model?"
        )
    return frozen(loaded, device, dtype)


def frozen(network: Any, device: str | torch.device, dtype: torch.dtype) -> Any:
    """`network` itself, in its place and type, never trained."""
    with quiet():
        return network.to(device=device, dtype=dtype).eval().requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what diffusers says while it loads and casts; what matters is raised here."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def scheduler(folder: Path, *, owner: str) -> Any:
    """The scheduler that a folder's scheduler_config.json names.

    Raises:
        WeightsError: it names none of diffusers.
    """
    import diffusers

    path = folder / SCHEDULER_CONFIG
    complaint = f"{owner!r} finds no scheduler of diffusers in {path}"
    try:
        config = json.loads(path.read_text())
        kind = getattr(diffusers, config["_class_name"])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(complaint) from error
    # A file names the class: nothing but a scheduler is made of it.
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise WeightsError(complaint)
    return kind.from_config(config)


def low_memory() -> bool:
    """Whether weights can be read without a second copy; diffusers needs accelerate for that."""
    return importlib.util.find_spec("accelerate") is not None


def refuse_random(owner: str, repository: str, unknown: str) -> None:
    """Say why there is nothing to initialise at random.

    Raises:
        WeightsError: always.
    """
    raise WeightsError(
        f"{owner!r} cannot be built with random weights: {unknown} comes with the weights of "
        f"{repository}; take weights='pretrained', or a recipe without it: derive(generator=None)"
    )
