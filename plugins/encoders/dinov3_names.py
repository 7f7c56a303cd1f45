"""Tensor names of DINOv3: timm and transformers publish the same networks."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_LAYER = re.compile(r"layer\.(\d+)\.(.+)")
# timm's name -> name in transformers' files.
_OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.bias",
}
_INSIDE = {
    "gamma_1": "layer_scale1.lambda1",
    "gamma_2": "layer_scale2.lambda1",
    "attn.q_bias": "attention.q_proj.bias",
    "attn.v_bias": "attention.v_proj.bias",
    "attn.proj.weight": "attention.o_proj.weight",
    "attn.proj.bias": "attention.o_proj.bias",
    "mlp.fc1_g.weight": "mlp.gate_proj.weight",
    "mlp.fc1_g.bias": "mlp.gate_proj.bias",
    "mlp.fc1_x.weight": "mlp.up_proj.weight",
    "mlp.fc1_x.bias": "mlp.up_proj.bias",
    "mlp.fc2.weight": "mlp.down_proj.weight",
    "mlp.fc2.bias": "mlp.down_proj.bias",
}
_PLAIN = {"mlp.fc1.weight": "mlp.up_proj.weight", "mlp.fc1.bias": "mlp.up_proj.bias"}
_OUTSIDE_BACK = {new: old for old, new in _OUTSIDE.items()}
_INSIDE_BACK = {new: old for old, new in _INSIDE.items()}
_PLAIN_BACK = {new: old for old, new in _PLAIN.items()}


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of transformers' files, from either layout.

    timm also publishes the networks without the biases of queries and values, which training left
    at 0; they are put back.
    """
    if "embeddings.cls_token" in tensors:
        return dict(tensors)
    named: dict[str, Tensor] = {"embeddings.mask_token": torch.zeros_like(tensors["cls_token"])}
    for name, tensor in tensors.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            named[_OUTSIDE.get(name, name)] = tensor
            continue
        prefix, rest = f"layer.{block[1]}.", block[2]
        if rest == "attn.qkv.weight":
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                named[f"{prefix}attention.{part}_proj.weight"] = chunk.contiguous()
            for part in "qv":
                named.setdefault(
                    f"{prefix}attention.{part}_proj.bias", tensor.new_zeros(len(chunk))
                )
        else:
            named[prefix + (_INSIDE | _PLAIN).get(rest, rest)] = tensor
    return named


def to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of transformers' files, renamed and merged for timm."""
    gated = any(".gate_proj." in name for name in tensors)
    inside = _INSIDE_BACK if gated else _INSIDE_BACK | _PLAIN_BACK
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer = _LAYER.fullmatch(name)
        if layer is None:
            named[_OUTSIDE_BACK.get(name, name)] = tensor
            continue
        prefix, rest = f"blocks.{layer[1]}.", layer[2]
        if rest == "attention.q_proj.weight":
            parts = [tensors[f"layer.{layer[1]}.attention.{part}_proj.weight"] for part in "qkv"]
            named[f"{prefix}attn.qkv.weight"] = torch.cat(parts)
        elif rest not in ("attention.k_proj.weight", "attention.v_proj.weight"):
            named[prefix + inside.get(rest, rest)] = tensor
    named.pop("embeddings.mask_token", None)  # timm has none
    return named
