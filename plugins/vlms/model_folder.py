"""Any model that transformers knows, from a local folder or a Hub repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from modalign_plugins.weights import sources

from modalign import BuildError, WeightsError

DESCRIPTIONS = "*.j*"  # .json and .jinja: configs, tokenizer, processor, chat template
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def folder_of(owner: str, model: str | None, weights: str | Path) -> Path:
    """The folder of `model`, fetched if it is a repository; `weights` may itself be a folder.

    With "random" weights only what describes the model is needed.

    Raises:
        BuildError: no model is named.
        WeightsError: it is neither a folder nor a repository, or cannot be fetched.
    """
    if weights not in ("pretrained", "random"):
        model = str(weights)
    if model is None:
        raise BuildError(
            f"{owner!r} serves any model; name one in the recipe, "
            "vlm_options={'model': '<Hub repository or local folder>'}"
        )
    if Path(model).is_dir():
        return Path(model)
    if not REPOSITORY.fullmatch(model):
        raise WeightsError(f"{owner!r} was given {model!r}, which is no folder and no repository")
    files = [DESCRIPTIONS] + ["model*.safetensors"] * (weights != "random")
    return sources.downloaded(owner, model, files)


def frozen_model(
    owner: str,
    folder: Path,
    classes: Any,
    *,
    weights: str | Path,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Any:
    """The frozen model in `folder`, of the class that `classes` (transformers' mapping) has for it.

    Raises:
        BuildError: transformers has no such class of this kind of model.
        WeightsError: a file is missing or damaged, or needs code of its own, which is never run.
    """
    from transformers import AutoConfig

    config = sources.described(owner, folder, AutoConfig)
    if type(config) not in classes:
        raise BuildError(
            f"{owner!r} cannot serve {folder}: transformers knows no model of type "
            f"{config.model_type!r} of this kind"
        )
    if weights != "random":
        sources.safetensors_in(folder, owner)
    return sources.load_frozen(
        classes[type(config)],
        config,
        None if weights == "random" else folder,
        owner=owner,
        device=device,
        dtype=dtype,
    )
