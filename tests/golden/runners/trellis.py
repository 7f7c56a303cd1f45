"""Every `trellis.*` kind, computed with our plugin from the entry's config, inputs and weights."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from modalign_plugins.generators.trellis import (
    attention,
    embedders,
    flexicubes,
    gaussians,
    layers,
    preprocess,
    radiance_field,
    sampler,
    slat_flow,
    slat_vae,
    structure_flow,
    structure_vae,
)
from modalign_plugins.generators.trellis.config import SamplerSettings
from modalign_plugins.generators.trellis.sparse import Coordinates, SparseTensor
from PIL import Image
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from modalign import Gaussians
from modalign.rendering.cameras import (
    Camera,
    camera_extrinsics,
    camera_intrinsics,
    hammersley,
    sphere_angles,
)
from tests.golden.case import Case, Runner, numbered

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


def flexicubes_mesh(case: Case) -> Outputs:
    """Our mesh, its vertices renumbered and its triangles rotated and ordered as expected."""
    args = case.config["args"]
    (surface,) = flexicubes.extract_surfaces(sparse_input(case), args["res"])
    vertices, faces, colors = surface.vertices, surface.faces, surface.color
    outputs = {"vertices": vertices, "faces": faces, "colors": colors}
    expected = case.expected
    if any(outputs[name].shape != tensor.shape for name, tensor in expected.items()):
        return outputs  # the comparison will say so
    # Coinciding vertices of neighbouring patches differ in colour, so both decide the match.
    ours = torch.cat([vertices, colors], dim=1).numpy()
    theirs = torch.cat([expected["vertices"], expected["colors"]], dim=1).numpy()
    match = cKDTree(ours).query(theirs)[1]  # our vertex for each of theirs
    if len(set(match.tolist())) < len(match):
        match = linear_sum_assignment(cdist(theirs, ours, "cityblock"))[1]
    order = torch.from_numpy(match)
    renumber = torch.empty_like(order)
    renumber[order] = torch.arange(len(order))
    outputs["vertices"], outputs["colors"] = vertices[order], colors[order]
    outputs["faces"] = in_order_of(expected["faces"], renumber[faces])
    return outputs


def in_order_of(expected: Tensor, faces: Tensor) -> Tensor:
    """Faces permuted and rotated, orientation kept, so that equal meshes are equal tensors."""

    def canonical(triangles: Tensor) -> tuple[Tensor, Tensor]:
        first = triangles.argmin(dim=1, keepdim=True)
        return triangles.gather(1, (first + torch.arange(3)) % 3), first

    (ours, _), (theirs, first) = canonical(faces), canonical(expected)
    rows_ours, rows_theirs = lexicographic(ours), lexicographic(theirs)
    ordered = torch.empty_like(ours)
    ordered[rows_theirs] = ours[rows_ours]
    return ordered.gather(1, (torch.arange(3) - first) % 3)


def lexicographic(rows: Tensor) -> Tensor:
    """The order that sorts rows (K, 3)."""
    order = torch.arange(len(rows))
    for column in (2, 1, 0):
        order = order[rows[order, column].argsort(stable=True)]
    return order


def analytic_denoiser(case: Case, cond: Tensor, neg_cond: Tensor) -> sampler.Denoiser:
    """v = x A^T + sin(3 t) cond[:, 0] + cos(2 t) cond[:, 1], as the entry's config writes it."""

    def velocity(x: Tensor, t: float, condition: Tensor) -> Tensor:
        time = torch.tensor(sampler.TIMESTEP_SCALE * t, dtype=torch.float32) / 1000
        wave = (3 * time).sin() * condition[:, 0] + (2 * time).cos() * condition[:, 1]
        return x @ case.inputs["A"].T + wave

    def denoise(x: Tensor, t: float, guided: bool) -> tuple[Tensor, Tensor | None]:
        return velocity(x, t, cond), velocity(x, t, neg_cond) if guided else None

    return denoise


def trajectory(name: str, steps: list[sampler.Step]) -> Outputs:
    return {
        f"{name}.samples": steps[-1].x,
        f"{name}.pred_x_t": torch.stack([step.x for step in steps]),
        f"{name}.pred_x_0": torch.stack([step.x_0 for step in steps]),
    }


def sampler_runs(case: Case) -> Outputs:
    denoiser = analytic_denoiser(case, case.inputs["cond"], case.inputs["neg_cond"])
    outputs: Outputs = {}
    for name, run in case.config["runs"].items():
        settings = SamplerSettings(
            steps=run["steps"],
            rescale_t=run["rescale_t"],
            cfg_strength=run.get("cfg_strength", 0),
            cfg_interval=run.get("cfg_interval", (0, 1)),
            sigma_min=case.config["sigma_min"],
        )
        steps = list(sampler.euler_steps(denoiser, case.inputs["noise"], settings))
        outputs.update(trajectory(name, steps))
    return outputs


def sampler_multi_image(case: Case) -> Outputs:
    names = ("steps", "rescale_t", "cfg_strength", "cfg_interval", "sigma_min")
    settings = SamplerSettings(**{k: case.config[k] for k in names if k in case.config})
    neg_cond = case.inputs["neg_cond"]
    outputs: Outputs = {}
    for name, combine in (("stochastic", sampler.in_turn), ("multidiffusion", sampler.averaged)):
        each = [analytic_denoiser(case, cond[None], neg_cond) for cond in case.inputs["cond"]]
        steps = list(sampler.euler_steps(combine(each), case.inputs["noise"], settings))
        outputs.update(trajectory(name, steps))
    return outputs


def preprocess_image(case: Case) -> Outputs:
    picture = Image.fromarray(case.inputs["rgba"].numpy())
    cropped = preprocess.crop_to_object(picture, size=case.expected["rgb"].shape[0])
    return {"rgb": torch.from_numpy(np.array(cropped))}


def cameras(case: Case) -> Outputs:
    fov = math.radians(case.config["fov_deg"])
    views = zip(case.inputs["yaw"].tolist(), case.inputs["pitch"].tolist(), strict=True)
    extrinsics = [camera_extrinsics(yaw, pitch, case.config["r"]) for yaw, pitch in views]
    intrinsics = [camera_intrinsics(fov)] * len(extrinsics)
    outputs = {
        "extrinsics": torch.from_numpy(np.stack(extrinsics)),
        "intrinsics": torch.from_numpy(np.stack(intrinsics)),
    }
    for name, expected in case.expected.items():
        if match := re.fullmatch(r"hammersley(\d+)_\d+", name):
            outputs[name] = torch.from_numpy(hammersley(len(expected), int(match[1])))
        elif name.startswith("sphere_hammersley"):
            outputs[name] = torch.from_numpy(sphere_angles(len(expected)))
    return outputs


def gaussian_outputs(splats: list[Gaussians]) -> Outputs:
    outputs: Outputs = {}
    for number, splat in enumerate(splats):
        outputs |= {f"b{number}.{name}": value for name, value in vars(splat).items()}
        upper = splat.covariance[:, *torch.triu_indices(3, 3)]
        outputs[f"b{number}.covariance6"] = upper * 1e6
        outputs[f"b{number}.raw_xyz_unit"] = splat.xyz + 0.5
    return outputs


@torch.no_grad()
def slat_dec_gs(case: Case) -> Outputs:
    model = gaussians.SLatGaussianDecoder(**arguments(case, {"attn_mode", "use_fp16"}))
    loaded(model, case)
    raw = model(sparse_input(case))
    return {"raw": raw.feats, **gaussian_outputs(model.gaussians(raw))}


def activated(case: Case, args: dict[str, Any]) -> list[Gaussians]:
    head = gaussians.GaussianHead(args["representation_config"], args["resolution"])
    raw = sparse_input(case)
    places = torch.split(raw.at.coords[:, 1:], raw.at.segments.counts)
    perturbation = head.offset_perturbation()
    return [head.activate(*pair, perturbation) for pair in zip(places, raw.split(), strict=True)]


@torch.no_grad()
def gaussian_activation(case: Case) -> Outputs:
    args = case.config["args"]
    head = gaussians.GaussianHead(args["representation_config"], args["resolution"])
    outputs = gaussian_outputs(activated(case, args))
    return {"offset_perturbation": head.offset_perturbation(), **outputs}


@torch.no_grad()
def gaussian_ply(case: Case) -> Outputs:
    """The columns of element 0; a quaternion and its negative are the same rotation."""
    released = {
        "representation_config": gaussians.RELEASED_REPRESENTATION,
        "resolution": gaussians.RELEASED_RESOLUTION,
    }
    columns = activated(case, released | case.config.get("args", {}))[0].ply_columns()
    names = [f"rot_{k}" for k in range(4)]
    ours = torch.stack([columns[name] for name in names])
    theirs = torch.stack([case.expected[name] for name in names])
    sign = torch.where((ours * theirs).sum(dim=0) < 0, -1, 1)
    return columns | dict(zip(names, ours * sign, strict=True))


@torch.no_grad()
def gaussian_render(case: Case) -> Outputs:
    """Only the views that the entry names were rendered; they are numbered as in `cameras`."""
    inputs = {name: value for name, value in case.inputs.items() if not name.endswith("trinsics")}
    splats = Gaussians(**inputs)
    names = numbered({name.partition(".")[0] for name in case.expected})
    outputs: Outputs = {}
    for number, name in enumerate(names):
        camera = Camera(
            *(case.inputs[f"{kind}trinsics"][number].double().numpy() for kind in ("ex", "in"))
        )
        picture, alpha = splats.view(camera, case.expected[f"{name}.alpha"].shape[0])
        black = picture.permute(2, 0, 1)
        outputs |= {
            f"{name}.alpha": alpha,
            f"{name}.black": black,
            f"{name}.white": black + 1 - alpha,
        }
    return outputs


@torch.no_grad()
def slat_dec_rf(case: Case) -> Outputs:
    model = radiance_field.SLatRadianceFieldDecoder(**arguments(case, {"attn_mode", "use_fp16"}))
    loaded(model, case)
    raw = model(sparse_input(case))
    outputs = {"raw": raw.feats}
    for number, field in enumerate(model.fields(raw)):
        outputs |= {f"b{number}.{name}": value for name, value in vars(field).items()}
    return outputs


RUNNERS: dict[str, Runner] = {
    "trellis.cameras": cameras,
    "trellis.embedders": embedder_tables,
    "trellis.flexicubes": flexicubes_mesh,
    "trellis.gaussian_activation": gaussian_activation,
    "trellis.gaussian_ply": gaussian_ply,
    "trellis.gaussian_render": gaussian_render,
    "trellis.mesh_subdivide_block": mesh_subdivide_block,
    "trellis.preprocess_image": preprocess_image,
    "trellis.sampler": sampler_runs,
    "trellis.sampler_multi_image": sampler_multi_image,
    "trellis.slat_dec_gs": slat_dec_gs,
    "trellis.slat_dec_rf": slat_dec_rf,
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
