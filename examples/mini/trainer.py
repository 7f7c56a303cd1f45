"""A resumable single-process loop for the small trainings of this folder.

Every random draw of step n comes from a generator seeded by (seed, n), so a run that was stopped
and started again takes the same steps. State (weights, moments, average) is one safetensors file
in `runs/mini/<name>/`, replaced whole; the log is `examples/mini/logs/<name>.jsonl`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs" / "mini"
LOGS = HERE / "logs"

Losses = Callable[[int, torch.Generator], dict[str, Tensor]]


def average(decay: float, step: int) -> float:
    """The weight of the old average at `step`: short memory at the start."""
    return min(decay, step / (10 + step))


def widen(model: nn.Module) -> None:
    """Xavier weights: the library's deviation of 0.02 is made for a thousand channels.

    At 128 channels it leaves every block almost the identity, and training barely starts.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


AMX: bool = torch.cpu._is_amx_tile_supported()  # matrix units for bfloat16


@contextmanager
def quick() -> Iterator[None]:
    """bfloat16 where the processor has matrix units for it, float32 elsewhere.

    There attention is made of plain matrix products: the fused one is slow to train in bfloat16.
    """
    if not AMX:
        yield
        return
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def compile_forward(module: nn.Module) -> None:
    """Compile what `module` does, where there are matrix units and a compiler."""
    if AMX and shutil.which("g++"):
        module.compile()


class Trainer:
    """AdamW with warm-up and cosine decay, an exponential average, and a state that survives."""

    def __init__(
        self,
        name: str,
        parameters: dict[str, nn.Parameter],
        *,
        steps: int,
        lr: float,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
        warmup: int = 50,
        ema: float = 0.99,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.parameters = {key: p for key, p in parameters.items() if p.requires_grad}
        self.steps, self.lr, self.warmup, self.ema, self.seed = steps, lr, warmup, ema, seed
        values = list(self.parameters.values())
        groups = [
            {"params": [p for p in values if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in values if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, foreach=True)
        self.averages = {key: p.detach().clone() for key, p in self.parameters.items()}
        self.step = 0
        self.seconds = 0.0
        self.folder = RUNS / name
        self.folder.mkdir(parents=True, exist_ok=True)
        LOGS.mkdir(exist_ok=True)
        self._resume()

    def _rate(self) -> float:
        if self.step < self.warmup:
            return self.lr * (self.step + 1) / self.warmup
        done = (self.step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))

    def run(self, losses: Losses, *, batch_size: int, log_every: int = 50) -> None:
        """Take the remaining steps; `losses(step, generator)` returns a dict with "loss"."""
        values = list(self.parameters.values())
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        saved = started = last = time.monotonic()
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
        ]
        with Progress(*columns) as progress:
            task = progress.add_task(self.name, total=self.steps, completed=self.step, loss="")
            while self.step < self.steps:
                for group in self.optimizer.param_groups:
                    group["lr"] = self._rate()
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
                terms = losses(self.step, generator)
                self.optimizer.zero_grad(set_to_none=True)
                terms["loss"].backward()  # type: ignore[no-untyped-call]
                norm = torch.nn.utils.clip_grad_norm_(values, 1.0)
                if torch.isfinite(norm):
                    self.optimizer.step()
                self.step += 1
                keep = average(self.ema, self.step)
                torch._foreach_lerp_(
                    list(self.averages.values()), [p.detach() for p in values], 1 - keep
                )
                for key, value in {**terms, "grad_norm": norm}.items():
                    sums[key] = sums.get(key, 0.0) + float(value.detach())
                    counts[key] = counts.get(key, 0) + 1
                now = time.monotonic()
                if self.step % log_every == 0 or self.step == self.steps:
                    self.seconds += now - last
                    last = now
                    means = {key: round(value / counts[key], 5) for key, value in sums.items()}
                    row = {
                        "step": self.step,
                        "seconds": round(self.seconds, 1),
                        "samples": self.step * batch_size,
                        **means,
                    }
                    with (LOGS / f"{self.name}.jsonl").open("a") as log:
                        log.write(json.dumps(row) + "\n")
                    progress.update(task, completed=self.step, loss=f"loss {means['loss']:.4f}")
                    sums, counts = {}, {}
                if now - saved > 120:
                    self.save()
                    saved = now
        self.save()
        self.use_average()
        print(f"{self.name}: {self.step} steps, {time.monotonic() - started:.0f} s")  # noqa: T201

    def use_average(self) -> None:
        """Copy the averaged weights into the model."""
        with torch.no_grad():
            for key, parameter in self.parameters.items():
                parameter.copy_(self.averages[key])

    def save(self) -> None:
        """Write the whole state, then put it in place of the old one."""
        state: dict[str, Tensor] = {}
        for key, parameter in self.parameters.items():
            state[f"weight.{key}"] = parameter.detach()
            state[f"average.{key}"] = self.averages[key]
            for name, value in self.optimizer.state[parameter].items():
                state[f"moment.{name}.{key}"] = torch.as_tensor(value)
        path = self.folder / "state.safetensors"
        save_file(
            {key: value.contiguous() for key, value in state.items()},
            path.with_suffix(".tmp"),
            metadata={"step": str(self.step), "seconds": str(self.seconds)},
        )
        os.replace(path.with_suffix(".tmp"), path)

    def _resume(self) -> None:
        path = self.folder / "state.safetensors"
        if not path.exists():
            (LOGS / f"{self.name}.jsonl").write_text("")
            return
        with safe_open(path, "pt") as state, torch.no_grad():
            metadata, stored = state.metadata(), set(state.keys())
            self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
            for key, parameter in self.parameters.items():
                parameter.copy_(state.get_tensor(f"weight.{key}"))
                self.averages[key] = state.get_tensor(f"average.{key}").clone()
                if f"moment.step.{key}" in stored:  # absent where no gradient ever arrived
                    self.optimizer.state[parameter] = {
                        name: state.get_tensor(f"moment.{name}.{key}").clone()
                        for name in ("step", "exp_avg", "exp_avg_sq")
                    }
        log = LOGS / f"{self.name}.jsonl"
        rows = [line for line in log.read_text().splitlines() if line] if log.exists() else []
        kept = [line for line in rows if json.loads(line)["step"] <= self.step]
        log.write_text("".join(line + "\n" for line in kept))
