"""Put trained weights where the package ships them, with where they came from in the header."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from trainer import HERE, Trainer

WEIGHTS = HERE.parents[1] / "plugins" / "weights"
CKPTS = WEIGHTS / "trellis-mini" / "ckpts"
DATA_SEED = 0


def commit() -> str:
    """The commit whose code trained the weights, marked if any code differs from it."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True)  # noqa: PLW1510

    changed = git("diff", "--quiet", "HEAD", "--", ":/*.py").returncode
    return git("rev-parse", "--short=12", "HEAD").stdout.strip() + "-dirty" * bool(changed)


def history(trainer: Trainer) -> dict[str, Any]:
    """Where weights come from: script, steps, seconds, data and commit."""
    return {
        "script": f"examples/mini/{trainer.name.split('-')[0]}.py",
        "steps": trainer.step,
        "seconds": round(trainer.seconds),
        "data": f"toybox, seed {DATA_SEED}",
        "commit": commit(),
    }


def publish_module(module: nn.Module, args: dict[str, Any], stem: Path, trainer: Trainer) -> None:
    """One model of the mini TRELLIS in the official layout: `<stem>.json` + safetensors."""
    target = publish(
        lambda path: save_file(
            {key: value.contiguous() for key, value in module.state_dict().items()}, path
        ),
        stem.with_suffix(".safetensors"),
        trainer,
    )
    target.with_suffix(".json").write_text(
        json.dumps({"name": type(module).__name__, "args": args}, indent=1) + "\n"
    )


def publish(save: Callable[..., None], target: Path, trainer: Trainer) -> Path:
    """Write weights in float16 to `target` through `save(path)`, with the training's own facts.

    One safetensors file; its header says by which script, steps, seconds, data seed and commit.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    save(temporary)
    with safe_open(temporary, "pt") as written:
        metadata = dict(written.metadata() or {})
        tensors = {key: written.get_tensor(key) for key in written.keys()}  # noqa: SIM118
    halves = {
        key: value.half() if value.dtype == torch.float32 else value
        for key, value in tensors.items()
    }
    metadata["training"] = json.dumps(history(trainer))
    save_file(halves, temporary, metadata=metadata)
    os.replace(temporary, target)
    print(f"{target.name}: {target.stat().st_size / 1e6:.2f} MB")  # noqa: T201
    return target


def write_pipeline(mean: list[float], std: list[float]) -> None:
    """The mini TRELLIS's pipeline.json, in the official layout."""
    sampler = {
        "name": "FlowEulerGuidanceIntervalSampler",
        "args": {"sigma_min": 1e-5},
        "params": {"steps": 20, "cfg_strength": 2.0, "cfg_interval": [0.5, 1.0], "rescale_t": 2.0},
    }
    models = {
        "sparse_structure_flow_model": "ckpts/ss_flow",
        "sparse_structure_decoder": "ckpts/ss_dec",
        "slat_flow_model": "ckpts/slat_flow",
        "slat_decoder_mesh": "ckpts/slat_dec_mesh",
        "slat_decoder_gs": "ckpts/slat_dec_gs",
        "sparse_structure_encoder": "ckpts/ss_enc",
        "slat_encoder": "ckpts/slat_enc",
    }
    content = {
        "name": "TrellisImageTo3DPipeline",
        "args": {
            "models": models,
            "sparse_structure_sampler": sampler,
            "slat_sampler": sampler,
            "slat_normalization": {"mean": mean, "std": std},
            "fill_cavities": True,
            "slat_features": "distances",
        },
    }
    path = WEIGHTS / "trellis-mini" / "pipeline.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
