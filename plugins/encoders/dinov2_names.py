"""Tensor names of DINOv2: torch-hub, timm and transformers publish the same networks."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
# torch-hub name -> name in transformers' files (a live transformers model has other names yet).
_OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_INSIDE = {
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "attn.proj.weight": "attention.output.dense.weight",
    "attn.proj.bias": "attention.output.dense.bias",
    # The gated layers of the giant.
    "mlp.w12.weight": "mlp.weights_in.weight",
    "mlp.w12.bias": "mlp.weights_in.bias",
    "mlp.w3.weight": "mlp.weights_out.weight",
    "mlp.w3.bias": "mlp.weights_out.bias",
}
_OUTSIDE_BACK = {new: old for old, new in _OUTSIDE.items()}
_INSIDE_BACK = {new: old for old, new in _INSIDE.items()}
_PARTS = ("query", "key", "value")
_TIMM_GATED = {"mlp.fc1.": "mlp.w12.", "mlp.fc2.": "mlp.w3."}


def to_transformers(tensors: Mapping[str, Tensor], *, gated: bool = False) -> dict[str, Tensor]:
    """The tensors under the names of transformers' files, from any of the three layouts.

    `gated`: the network has the giant's SwiGLU layers, whose names timm gives to plain ones too.
    """
    if "embeddings.cls_token" in tensors:
        return dict(tensors)
    named: dict[str, Tensor] = {}
    for name, tensor in _to_hub(tensors, gated).items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            named[_OUTSIDE.get(name, name)] = tensor
            continue
        prefix, rest = f"encoder.layer.{block[1]}.", block[2]
        if rest.startswith("attn.qkv."):
            kind = rest.removeprefix("attn.qkv.")
            for part, chunk in zip(_PARTS, tensor.chunk(3), strict=True):
                named[f"{prefix}attention.attention.{part}.{kind}"] = chunk.contiguous()
        else:
            named[prefix + _INSIDE.get(rest, rest)] = tensor
    return named


def to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of transformers' files, renamed and merged for timm."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer = _LAYER.fullmatch(name)
        if layer is None:
            named[_OUTSIDE_BACK.get(name, name)] = tensor
            continue
        prefix, rest = f"blocks.{layer[1]}.", layer[2]
        if rest.startswith("attention.attention."):
            part, kind = rest.removeprefix("attention.attention.").split(".")
            if part == _PARTS[0]:
                stem = f"encoder.layer.{layer[1]}.attention.attention."
                chunks = [tensors[f"{stem}{each}.{kind}"] for each in _PARTS]
                named[f"{prefix}attn.qkv.{kind}"] = torch.cat(chunks)
        else:
            rest = _INSIDE_BACK.get(rest, rest)
            for timm, hub in _TIMM_GATED.items():
                rest = rest.replace(hub, timm)
            named[prefix + rest] = tensor
    named.pop("mask_token", None)  # timm has none
    if "register_tokens" in named:
        # Beside registers, timm keeps the class token's position inside the token.
        position = named.pop("pos_embed")
        named["cls_token"] = named["cls_token"] + position[:, :1]
        named["pos_embed"] = position[:, 1:]
        named["reg_token"] = named.pop("register_tokens")
    return named


def _to_hub(tensors: Mapping[str, Tensor], gated: bool) -> dict[str, Tensor]:
    """Torch-hub's layout, from that or timm's; only timm's lacks the mask token."""
    if "mask_token" in tensors:
        return dict(tensors)
    named = dict(tensors)
    zero = torch.zeros_like(named["cls_token"])
    if "reg_token" in named:
        named["pos_embed"] = torch.cat([zero, named["pos_embed"]], dim=1)
        named["register_tokens"] = named.pop("reg_token")
    named["mask_token"] = zero[0]
    if gated:
        for timm, hub in _TIMM_GATED.items():
            named = {name.replace(timm, hub): tensor for name, tensor in named.items()}
    return named
