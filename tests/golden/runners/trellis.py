"""Every `trellis.*` kind, computed with our plugin from the entry's config, inputs and weights."""

from __future__ import annotations

import re
from typing import Any

import torch
from modalign_plugins.generators.trellis import (
    attention,
    embedders,
    layers,
    slat_flow,
    slat_vae,
    structure_flow,
    structure_vae,
)
from modalign_plugins.generators.trellis.sparse import Coordinates, SparseTensor
from torch import Tensor, nn

from tests.golden.case import Case, Runner

Outputs = dict[str, Tensor]

# Arguments of the reference classes that select what our classes always do.
FIXED_ARGUMENTS = {"pe_mode", "attn_mode", "use_fp16", "representation_config"}


def arguments(case: Case, drop: set[str] = FIXED_ARGUMENTS) -> dict[str, Any]:
    kept = {name: value for name, value in case.config["args"].items() if name not in drop}
    return kept


def loaded(module: nn.Module, case: Case) -> nn.Module:
    module.load_state_dict(case.state_dict, strict=True)
    return module.eval()


def sparse_input(case: Case, feats: str = "feats") -> SparseTensor:
    return SparseTensor.from_coords(case.inputs["coords"], case.inputs[feats])


@torch.no_grad()
def sparse_conv3d(case: Case) -> Outputs:
    conv = loaded(layers.SparseConv3d(**arguments(case)), case)
    return {"feats": conv(sparse_input(case)).feats}


@torch.no_grad()
def sparse_down_up(case: Case) -> Outputs:
    x = sparse_input(case)
    down = layers.downsample(x, 2)
    up = layers.upsample(down.replace(down.feats * 1.5), x, 2)
    return {
        "down_coords": down.at.coords,
        "down_feats": down.feats,
        "up_coords": up.at.coords,
        "up_feats": up.feats,
    }


@torch.no_grad()
def sparse_subdivide(case: Case) -> Outputs:
    fine = layers.subdivide(sparse_input(case))
    return {"coords": fine.at.coords, "feats": fine.feats}


@torch.no_grad()
def sparse_group_norm(case: Case) -> Outputs:
    norm = loaded(layers.SparseGroupNorm32(**arguments(case)), case)
    return {"feats": norm(sparse_input(case)).feats}


@torch.no_grad()
def sparse_window_attention(case: Case) -> Outputs:
    at, qkv = Coordinates(case.inputs["coords"]), case.inputs["qkv"]
    outputs = {"out_full": attention.attend_in_groups(qkv, at.segments.groups)}
    for name in case.expected:
        if match := re.fullmatch(r"out_w(\d+)_s(\d+)", name):
            groups = at.windows(int(match[1]), int(match[2]))
            outputs[name] = attention.attend_in_groups(qkv, groups)
    return outputs


@torch.no_grad()
def sparse_mha(case: Case) -> Outputs:
    args, x = case.config["args"], sparse_input(case)
    norm = args.get("qk_rms_norm", False)
    if args.get("type", "self") == "cross":
        cross = attention.CrossAttention(
            args["channels"], args["ctx_channels"], args["num_heads"], norm
        )
        loaded(cross, case)
        context = cross.read(case.inputs["context"])
        return {"feats": cross(x.feats, context, x.at.segments)}
    own = attention.SelfAttention(args["channels"], args["num_heads"], norm)
    loaded(own, case)
    windowed = args.get("attn_mode", "full") == "windowed"
    shift = args.get("shift_window") or 0
    groups = x.at.windows(args["window_size"], shift) if windowed else x.at.segments.groups
    return {"feats": own(x.feats, groups)}


@torch.no_grad()
def embedder_tables(case: Case) -> Outputs:
    outputs = {}
    for name in case.expected:
        kind, width = name.rsplit("_", 1)
        if kind == "ape":
            outputs[name] = embedders.embed_positions(case.inputs["coords"], int(width))
        else:
            outputs[name] = embedders.embed_timesteps(case.inputs["t"], int(width))
    return outputs


@torch.no_grad()
def ss_flow(case: Case) -> Outputs:
    model = structure_flow.SparseStructureFlowModel(**arguments(case))
    loaded(model, case)
    seen: dict[str, Tensor] = {}
    model.t_embedder.register_forward_hook(lambda m, i, o: seen.update({"mid.t_emb": o}))
    tokens = (len(case.inputs["x"]), model.side**3, -1)
    model.blocks[0].register_forward_hook(
        lambda m, i, o: seen.update(
            {"mid.block0_in": i[0].view(tokens), "mid.block0_out": o.view(tokens)}
        )
    )
    v = model(case.inputs["x"], case.inputs["t"], case.inputs["cond"])
    return {"v": v, **seen}


@torch.no_grad()
def slat_flow_model(case: Case) -> Outputs:
    model = slat_flow.SLatFlowModel(**arguments(case))
    loaded(model, case)
    seen: dict[str, Tensor] = {}
    for number, block in enumerate(model.input_blocks):

        def keep(m: nn.Module, i: Any, o: SparseTensor, number: int = number) -> None:
            seen[f"mid.input_block{number}"] = o.feats
            seen["mid.down_coords"] = o.at.coords

        block.register_forward_hook(keep)
    model.blocks[-1].register_forward_hook(lambda m, i, o: seen.update({"mid.last_block": o}))
    for number, block in enumerate(model.out_blocks):
        block.register_forward_hook(
            lambda m, i, o, number=number: seen.update({f"mid.out_block{number}": o.feats})
        )
    v = model(sparse_input(case), case.inputs["t"], case.inputs["cond"])
    return {"v": v.feats, **seen}


@torch.no_grad()
def ss_dec(case: Case) -> Outputs:
    model = loaded(structure_vae.SparseStructureDecoder(**arguments(case)), case)
    logits = model(case.inputs["z"])
    return {"logits": logits, "coords": structure_vae.occupied(logits)}


@torch.no_grad()
def ss_enc(case: Case) -> Outputs:
    model = loaded(structure_vae.SparseStructureEncoder(**arguments(case)), case)
    mean, logvar = model(case.inputs["x"])
    return {"z": mean, "mean": mean, "logvar": logvar}


@torch.no_grad()
def mesh_subdivide_block(case: Case) -> Outputs:
    # The resolution only named a cache in the reference.
    block = layers.SparseSubdivideBlock3d(**arguments(case, FIXED_ARGUMENTS | {"resolution"}))
    fine = loaded(block, case)(sparse_input(case))
    return {"coords": fine.at.coords, "feats": fine.feats}


@torch.no_grad()
def slat_dec_mesh(case: Case) -> Outputs:
    groups = {"num_groups": case.config["num_groups"]} if "num_groups" in case.config else {}
    model = slat_vae.SLatMeshDecoder(**arguments(case), **groups)
    loaded(model, case)
    seen: dict[str, Tensor] = {}
    for number, block in enumerate(model.upsample):
        block.register_forward_hook(
            lambda m, i, o, number=number: seen.update({f"mid.upsample{number}": o.feats})
        )
    raw = model(sparse_input(case))
    return {"raw": raw.feats, "raw_coords": raw.at.coords, **seen}


RUNNERS: dict[str, Runner] = {
    "trellis.embedders": embedder_tables,
    "trellis.mesh_subdivide_block": mesh_subdivide_block,
    "trellis.slat_dec_mesh": slat_dec_mesh,
    "trellis.slat_flow": slat_flow_model,
    "trellis.sparse_conv3d": sparse_conv3d,
    "trellis.sparse_down_up": sparse_down_up,
    "trellis.sparse_group_norm": sparse_group_norm,
    "trellis.sparse_mha": sparse_mha,
    "trellis.sparse_subdivide": sparse_subdivide,
    "trellis.sparse_window_attention": sparse_window_attention,
    "trellis.ss_dec": ss_dec,
    "trellis.ss_enc": ss_enc,
    "trellis.ss_flow": ss_flow,
}
