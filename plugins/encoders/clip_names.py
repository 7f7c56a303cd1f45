"""Tensor names of CLIP vision towers: open_clip and transformers publish the same networks."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

TOWER = ("visual.", "vision_model.", "visual_projection.")
"""How names of the vision tower begin, in either layout; the rest of a file is the text tower."""

_BLOCK = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_JOINT = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
# open_clip's name -> name in transformers' files.
_OUTSIDE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # spelt so
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower under the names of transformers' files, from either layout."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(TOWER):
            continue
        block, joint = _BLOCK.fullmatch(name), _JOINT.fullmatch(name)
        if joint is not None:
            layer, kind = joint.groups()
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                prefix = f"vision_model.encoder.layers.{layer}.self_attn"
                named[f"{prefix}.{part}_proj.{kind}"] = chunk.contiguous()
        elif block is not None:
            layer, rest, kind = block.groups()
            named[f"vision_model.encoder.layers.{layer}.{_INSIDE[rest]}.{kind}"] = tensor
        elif name == "visual.proj":  # applied from the right there, from the left here
            named["visual_projection.weight"] = tensor.T.contiguous()
        else:
            named[_OUTSIDE.get(name, name)] = tensor
    return named
