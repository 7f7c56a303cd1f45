"""From a mesh to what TRELLIS makes meshes of: its voxels and a latent at each of them.

Legend: N voxels, V views, C feature width, h x w patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from modalign import Mesh

from .architectures import cast_trunk
from .distances import distance_features
from .loader import load_model, model_stem, read_pipeline
from .slat_vae import SLatEncoder
from .sparse import Coordinates, SparseTensor
from .structure_vae import SparseStructureEncoder, sample_posterior
from .voxels import voxelize

STRUCTURE_ENCODER, LATENT_ENCODER = "sparse_structure_encoder", "slat_encoder"
# The released pipeline.json names no encoders, though its repository has them.
RELEASED_ENCODERS = {
    STRUCTURE_ENCODER: "ckpts/ss_enc_conv3d_16l8_fp16",
    LATENT_ENCODER: "ckpts/slat_enc_swin8_B_64l8_fp16",
}

Reads = Literal["views", "distances"]


@dataclass(frozen=True)
class Encoders:
    """Both VAEs' encoders, frozen.

    Attributes:
        structure: occupancy grid to structure latent.
        latent: voxel features to structured latent.
        reads: what these features are: picture features of views, or distances and colours.
    """

    structure: SparseStructureEncoder
    latent: SLatEncoder
    reads: Reads


@dataclass(frozen=True)
class Views:
    """Pictures of an object as patch features, and where they were taken from.

    The released encoder was trained on 150 views all around the object, with DINOv2's patch
    tokens (ViT-L/14 with registers, before its last norm) of pictures of 518 x 518.

    Attributes:
        features: (V, C, h, w), rows from the top.
        extrinsics: (V, 4, 4) world to camera, OpenCV axes.
        intrinsics: (V, 3, 3) for pictures of width and height 1.
    """

    features: Tensor
    extrinsics: Tensor
    intrinsics: Tensor

    def __post_init__(self) -> None:
        count = len(self.features)
        shapes = {"extrinsics": (count, 4, 4), "intrinsics": (count, 3, 3)}
        if self.features.ndim != 4 or count == 0:
            raise ValueError(f"features must be (V, C, h, w), got {tuple(self.features.shape)}")
        for name, shape in shapes.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(f"{name} of {count} views must be {shape}, got {got}")


def load_encoders(
    folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Encoders:
    """The encoders beside a pipeline.

    Raises:
        WeightsError: a file is missing, damaged, or of another model; the message names it.
    """
    args = read_pipeline(folder).args
    stems = {role: args.models.get(role, path) for role, path in RELEASED_ENCODERS.items()}
    structure = load_model(model_stem(folder, stems[STRUCTURE_ENCODER]), SparseStructureEncoder)
    latent = load_model(model_stem(folder, stems[LATENT_ENCODER]), SLatEncoder)
    for model in (structure, latent):
        cast_trunk(model, dtype)
        model.to(device).eval().requires_grad_(False)
    assert isinstance(structure, SparseStructureEncoder)
    assert isinstance(latent, SLatEncoder)
    return Encoders(structure, latent, args.slat_features)


def project_features(at: Coordinates, resolution: int, views: Views) -> Tensor:
    """Mean over views of their features (N, C) at the projected centres of the voxels, float32.

    Features are interpolated between the centres of patches; beyond a picture's edge they are 0.
    """
    centre = (at.coords[:, 1:].float() + 0.5) / resolution - 0.5  # (N, 3)
    # Half-precision sums over many views would lose what they add.
    wide = torch.promote_types(views.features.dtype, torch.float32)
    total = views.features.new_zeros(len(at), views.features.shape[1], dtype=wide)
    for features, extrinsics, intrinsics in zip(
        views.features, views.extrinsics.float(), views.intrinsics.float(), strict=True
    ):
        seen = centre @ extrinsics[:3, :3].T + extrinsics[:3, 3]
        projected = seen @ intrinsics.T
        place = projected[:, :2] / projected[:, 2:] * 2 - 1  # -1..1 from edge to edge
        found = nn.functional.grid_sample(
            features[None].to(wide),
            place[None, None].to(wide),
            mode="bilinear",
            align_corners=False,
        )
        total += found[0, :, 0].T
    return total / len(views.features)


def occupancy(at: Coordinates, resolution: int) -> Tensor:
    """The voxels as a grid (B, 1, R, R, R) of ones and zeros, float32."""
    grid = torch.zeros(at.batch_size, 1, *(resolution,) * 3, device=at.coords.device)
    batch, x, y, z = at.coords.long().unbind(1)
    grid[batch, 0, x, y, z] = 1
    return grid


@torch.no_grad()
def encode_structure(
    encoders: Encoders, at: Coordinates, resolution: int, generator: torch.Generator | None = None
) -> Tensor:
    """The structure latent (B, C, r, r, r) of voxels; its mean, or a draw by `generator`."""
    mean, logvar = encoders.structure(occupancy(at, resolution))
    return mean if generator is None else sample_posterior(mean, logvar, generator)


@torch.no_grad()
def encode_mesh(
    encoders: Encoders,
    mesh: Mesh,
    *,
    views: Views | None = None,
    generator: torch.Generator | None = None,
) -> SparseTensor:
    """The structured latent at the voxels of a mesh, in the scale its decoder expects.

    Args:
        encoders: of the pipeline.
        mesh: anything with a surface; centred, and its longest side made 1.
        views: of the mesh so placed; needed where, and only where, the encoder reads views.
        generator: draws from the posterior; its mean if None.

    Raises:
        ValueError: there is no surface, views are missing or of another width, or the mesh has no
            clear inside where the encoder reads distances.
    """
    encoder = encoders.latent
    voxels = voxelize(mesh, encoder.resolution)
    device = encoder.input_layer.weight.device
    width = encoder.input_layer.in_features
    if encoders.reads == "distances":
        if views is not None:
            raise ValueError("this pipeline's encoder reads the mesh itself; give no views")
        feats = distance_features(mesh, voxels)
        at = Coordinates(voxels.at.coords.to(device), 1)
    else:
        if views is None:
            raise ValueError(
                "this pipeline's encoder reads pictures of the mesh; give views=Views(...) with "
                f"{width} features per patch"
            )
        if views.features.shape[1] != width:
            raise ValueError(
                f"the views have {views.features.shape[1]} features per patch, but this "
                f"pipeline's encoder reads {width}"
            )
        at = Coordinates(voxels.at.coords.to(views.features.device), 1)
        feats = project_features(at, voxels.resolution, views)
        at = Coordinates(voxels.at.coords.to(device), 1)
    mean, logvar = encoder(SparseTensor(at, feats.to(device, torch.float32)))
    chosen = mean if generator is None else sample_posterior(mean, logvar, generator)
    return SparseTensor(at, chosen)
