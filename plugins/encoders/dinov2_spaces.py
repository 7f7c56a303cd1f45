"""From DINOv2 tokens under an affine-free LayerNorm to `last_hidden_state`, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from modalign_plugins.weights import sources
from torch import Tensor

from modalign import TokenStream, TokenStreamSpec, WeightsError

StreamMap = Callable[[TokenStream], TokenStream]

_NAMES = {  # in transformers' files; in torch-hub's and timm's
    "gain": ("layernorm.weight", "norm.weight"),
    "bias": ("layernorm.bias", "norm.bias"),
}


def affine_stream(stream: TokenStreamSpec) -> TokenStreamSpec:
    """The stream of the same network after its own final norm: other numbers, same groups."""
    encoder, _, place = stream.space.partition("/layernorm")
    return TokenStreamSpec(space=f"{encoder}/affine-layernorm{place}", groups=stream.groups)


def affine_maps(
    gain: Tensor, bias: Tensor, device: str | torch.device
) -> tuple[StreamMap, StreamMap]:
    """`tokens * gain + bias` on every group, and its inverse; `gain` and `bias` are (D,).

    Computed in float32, returned in the dtype of the tokens. Against the model's own norm this
    differs by the two epsilons (1e-5 here, 1e-6 there): 5e-6 of a token of variance 1.
    """
    gain, bias = gain.to(device, torch.float32), bias.to(device, torch.float32)

    def forward(stream: TokenStream) -> TokenStream:
        return {
            name: (tokens.float() * gain + bias).to(tokens.dtype) for name, tokens in stream.items()
        }

    def inverse(stream: TokenStream) -> TokenStream:
        return {
            name: ((tokens.float() - bias) / gain).to(tokens.dtype)
            for name, tokens in stream.items()
        }

    return forward, inverse


def final_norm(path: Path, owner: str) -> tuple[Tensor, Tensor]:
    """Gain and bias (D,) of the final norm in a weights file or folder; nothing else is read.

    Raises:
        WeightsError: the file lacks them, or the gain has a zero, which no inverse survives.
    """
    wanted = {name for names in _NAMES.values() for name in names}
    tensors = sources.read_tensors(path, owner, wanted.__contains__)
    found: list[Tensor] = []
    for part, names in _NAMES.items():
        held = [tensors[name] for name in names if name in tensors]
        if not held:
            raise WeightsError(f"{path} holds no {part} of a final norm ({' or '.join(names)})")
        found.append(held[0])
    gain, bias = found
    if not gain.all():
        raise WeightsError(f"the final norm in {path} has a gain of 0: no map leads back from it")
    return gain, bias
