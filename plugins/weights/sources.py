"""Where weights lie: shipped with the package, in a folder of the user's, or on the Hub."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalign import BuildError, WeightsError
from modalign.hub import downloaded

__all__ = [
    "described",
    "downloaded",
    "file_tensors",
    "load_frozen",
    "read_tensors",
    "read_tokenizer",
    "safetensors_in",
    "shipped",
]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model*.safetensors*"  # one file, or several and their index


def shipped(name: str) -> Path:
    """The file or folder `name` among the weights that ship with the package.

    Raises:
        WeightsError: this installation lacks it.
    """
    path = Path(str(resources.files("modalign_plugins.weights") / name))
    if not path.exists():
        raise WeightsError(
            f"the weights {name!r} that ship with modalign are missing from this installation; "
            "reinstall modalign"
        )
    return path


def safetensors_in(folder: Path, owner: str) -> list[Path]:
    """The weight files of a model folder, each present and readable.

    Raises:
        WeightsError: one is missing or damaged; names the file.
    """
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        raise WeightsError(f"{owner!r} was given weights={str(folder)!r}, which does not exist")
    index = folder / INDEX
    names = [WEIGHTS]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in names:
        path = folder / name
        if not path.is_file():
            raise WeightsError(f"{owner!r} needs {name}, which {folder} lacks")
        try:
            with safe_open(path, framework="pt"):  # checks the header against the file's length
                pass
        except SafetensorError as error:
            raise WeightsError(f"{path} is damaged ({error}); download it again") from error
    return [folder / name for name in names]


def read_tensors(
    path: Path, owner: str, keep: Callable[[str], bool] | None = None
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a folder of them; `keep` chooses by name.

    What is not kept is not read: a full CLIP file costs no more than its vision tower.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    files = [path] if path.is_file() else safetensors_in(path, owner)
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                names = [name for name in opened.keys() if keep is None or keep(name)]
                tensors.update((name, opened.get_tensor(name)) for name in names)
        except SafetensorError as error:
            raise WeightsError(f"{file} is damaged ({error}); download it again") from error
    return tensors


def read_tokenizer(folder: Path, owner: str) -> Any:
    """The fast tokenizer of a model folder.

    Raises:
        WeightsError: tokenizer.json is missing or damaged.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise WeightsError(f"{owner!r} needs tokenizer.json, which {folder} lacks")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise WeightsError(f"{path} is damaged ({error}); download it again") from error


def described(owner: str, folder: Path, loader: Any) -> Any:
    """What `loader`, a class of transformers that is no model, reads from a folder.

    Raises:
        BuildError: it needs a library that is not installed.
        WeightsError: the folder lacks it, or it needs code of its own, which is never run.
    """
    try:
        return loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise BuildError(f"{owner!r} cannot read {folder}: {str(error).strip()}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{owner!r} finds no usable {loader.__name__.removeprefix('Auto').lower()} in "
            f"{folder}: {error}"
        ) from error


def load_frozen(
    model_class: Any,
    config: Any,
    source: Path | dict[str, Tensor] | None,
    *,
    owner: str,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Any:
    """A frozen transformers model: from a folder, from tensors, or with random weights (None).

    Tensors carry the names of transformers' files. Random weights come from the global generator
    and work on the meta device, without memory.

    Raises:
        WeightsError: tensors are missing, or of another shape.
    """
    if source is None:
        with torch.device(device):
            model = model_class(config)
        return model.to(dtype=dtype).eval().requires_grad_(False)
    tensors = source if isinstance(source, dict) else None
    with _quiet():
        model, report = model_class.from_pretrained(
            None if tensors is not None else source,
            config=config,
            state_dict=tensors,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, with the others
            output_loading_info=True,
        )
    where = "these weights" if tensors is not None else f"the weights in {source}"
    missing = sorted(report["missing_keys"])
    if missing:
        raise WeightsError(
            f"{owner!r} has {len(missing)} tensors that {where} do not hold, for example "
            f"{missing[0]!r}; are they of another model?"
        )
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        name, got, expected = wrong[0]
        raise WeightsError(
            f"{owner!r} has {len(wrong)} tensors of another shape than {where} hold, for example "
            f"{name!r}: got {tuple(got)}, expected {tuple(expected)}"
        )
    return model.to(device).eval().requires_grad_(False)


def file_tensors(model: Any) -> dict[str, Tensor]:
    """A transformers model's tensors under the names of its files.

    A live model has other names: transformers renames when it loads, and back when it saves.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        model.save_pretrained(folder)
        return read_tensors(Path(folder), type(model).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' progress bars and loading report, and restores them."""
    from transformers.utils import logging as module

    logging: Any = module  # its functions are not annotated
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
