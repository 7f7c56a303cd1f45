"""Tensor names of DINOv2 with registers: torch-hub, timm and transformers publish the same net."""

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
}
_OUTSIDE_BACK = {new: old for old, new in _OUTSIDE.items()}
_INSIDE_BACK = {new: old for old, new in _INSIDE.items()}
_PARTS = ("query", "key", "value")


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of transformers' files, from any of the three layouts."""
    if "embeddings.cls_token" in tensors:
        return dict(tensors)
    tensors = _from_timm(tensors) if "reg_token" in tensors else dict(tensors)
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
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
            named[prefix + _INSIDE_BACK.get(rest, rest)] = tensor
    # timm keeps the class token's position inside the token, and has no mask token.
    position = named.pop("pos_embed")
    named.pop("mask_token", None)
    named["cls_token"] = named["cls_token"] + position[:, :1]
    named["pos_embed"] = position[:, 1:]
    named["reg_token"] = named.pop("register_tokens")
    return named


def _from_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = dict(tensors)
    zero = torch.zeros_like(named["cls_token"])
    named["pos_embed"] = torch.cat([zero, named["pos_embed"]], dim=1)
    named["register_tokens"] = named.pop("reg_token")
    named["mask_token"] = zero[0]
    return named
