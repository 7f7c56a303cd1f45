"""While a stock pipeline runs: noise of one's own, progress, and results that are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modalign import GenerationError, Picture, Progress, TokenStream, TokenStreamSpec

if TYPE_CHECKING:
    from modalign.specs import Asset, ProgressCallback


def one_by_one(
    accepts: TokenStreamSpec,
    stream: TokenStream,
    network: Any,
    seed: int,
    make: Callable[[Tensor, torch.Generator], Asset],
) -> list[Asset]:
    """What `make` makes of each element's tokens (1, N, D), as `network` wants them, and its noise.

    Elements go through the pipeline one after the other, so a result never depends on its
    neighbours. Noise is drawn on the CPU, so a seed means the same on every device.

    Raises:
        GenerationError: a token is not finite.
    """
    tokens = accepts.pack(stream).to(network.device, network.dtype)  # (B, N, D)
    require_finite("condition", tokens)
    return [
        make(tokens[k : k + 1], torch.Generator().manual_seed(seed + k)) for k in range(len(tokens))
    ]


@contextmanager
def reported(
    stage: str, network: nn.Module, scheduler: Any, progress: ProgressCallback | None
) -> Iterator[None]:
    """Reports every call of `network`, which the pipeline makes once per timestep.

    Counting calls is the one way that all pipelines share: Shap-E's takes no callback.
    """
    if progress is None:
        yield
        return
    done = 0

    def count(*_: Any) -> None:
        nonlocal done
        done += 1
        progress(Progress(stage, done, len(scheduler.timesteps)))

    handle = network.register_forward_hook(count)
    try:
        yield
    finally:
        handle.remove()


def as_picture(stage: str, values: Any) -> Picture:
    """The picture of an array or tensor (H, W, 3) in 0..1.

    Raises:
        GenerationError: a value is not finite.
    """
    values = torch.as_tensor(values).float().cpu()
    require_finite(stage, values)
    return Picture.from_unit(values.numpy())


def require_finite(stage: str, x: Tensor) -> None:
    """Refuse numbers that are not finite.

    Raises:
        GenerationError: names the stage.
    """
    if not bool(torch.isfinite(x).all()):
        raise GenerationError(
            f"stage {stage!r} produced non-finite numbers; if the weights run in half precision, "
            "try bfloat16 or float32, else check that they are not damaged"
        )
