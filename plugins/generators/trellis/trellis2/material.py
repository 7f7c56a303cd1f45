"""What a surface is made of: material at voxels, at vertices, and in the file.

Legend: N voxels, V vertices, F triangles.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from modalign_plugins.generators.trellis.sparse import SparseTensor
from torch import Tensor

from modalign import Mesh
from modalign.assets import write_whole
from modalign.assets.mesh import Y_UP, linear_from_srgb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

CHUNK = 1 << 18  # vertices at a time: 27 neighbours of each are gathered
OPAQUE = 0.995  # a surface whose every vertex is above this is written as opaque


def sample_material(voxels: SparseTensor, rows: Tensor, offset: Tensor) -> Tensor:
    """Features (V, C) of voxels (N, C) at points, trilinear between the centres of voxels.

    A point is `offset` (V, 3) voxels from the near corner of voxel `rows` (V,), -0.5 to 1.5 as
    vertices of a dual grid are: all eight voxels around it are then neighbours of that one. Where
    some of them do not exist, the others share their weight; where none does, the point takes the
    features of its own voxel.
    """
    axis = torch.tensor([-1.0, 0.0, 1.0], device=offset.device)
    step = torch.cartesian_prod(axis, axis, axis)  # (27, 3), in the order of taps
    padded = torch.cat([voxels.feats, voxels.feats.new_zeros(1, voxels.feats.shape[1])])
    sampled = []
    for start in range(0, len(rows), CHUNK):
        row, from_centre = rows[start : start + CHUNK], offset[start : start + CHUNK] - 0.5
        neighbours = voxels.at.neighbours[row].long()  # (chunk, 27)
        weight = (1 - (from_centre[:, None] - step).abs()).clamp(min=0).prod(dim=-1)
        weight = torch.where(neighbours < len(voxels.at), weight, 0.0)
        share = weight.sum(dim=1, keepdim=True)
        mean = (weight[..., None] * padded[neighbours]).sum(dim=1) / share.clamp(min=1e-12)
        sampled.append(torch.where(share > 1e-6, mean, voxels.feats[row]))
    return torch.cat(sampled) if sampled else voxels.feats[rows]


@dataclass(frozen=True, eq=False, kw_only=True)
class MaterialMesh(Mesh):
    """A mesh whose surface also has a material.

    Attributes:
        metallic: (V,) float32 in 0..1.
        roughness: (V,) float32 in 0..1.
        alpha: (V,) float32 in 0..1, 1 opaque.

    Raises:
        ValueError: as `Mesh`, or a material array does not have one number in 0..1 per vertex.
    """

    metallic: Floats
    roughness: Floats
    alpha: Floats

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("metallic", "roughness", "alpha"):
            array = np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            if array.shape != (len(self.vertices),):
                raise ValueError(
                    f"{name} must be ({len(self.vertices)},), one number per vertex, "
                    f"got {array.shape}"
                )
            if not ((array >= 0) & (array <= 1)).all():
                raise ValueError(f"{name} must lie in 0..1")
            object.__setattr__(self, name, array)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write GLB, PLY or OBJ, whole or not at all; equal meshes give equal files.

        Only GLB carries the material. glTF knows metallic and roughness per material or texture,
        not per vertex: the means over the surface are its factors, and the attributes _METALLIC
        and _ROUGHNESS keep the numbers of each vertex. Alpha is part of the vertex colour.

        Raises:
            ValueError: the extension is unknown, or there is no face to write.
            OSError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() == ".glb" and len(self.faces):
            write_whole(path, self._glb())
        else:
            super().save(path)

    def _glb(self) -> bytes:
        from trimesh import Trimesh
        from trimesh.exchange.gltf import export_glb

        color = np.column_stack([linear_from_srgb(self.vertex_colors), self.alpha])
        mesh = Trimesh(
            vertices=self.vertices @ Y_UP.T,
            faces=self.faces,
            vertex_normals=self.vertex_normals @ Y_UP.T,
            vertex_colors=np.rint(color.clip(0, 1) * 255).astype(np.uint8),
            vertex_attributes={"_METALLIC": self.metallic, "_ROUGHNESS": self.roughness},
            process=False,
        )
        return bytes(export_glb(mesh, include_normals=True, tree_postprocessor=self._add_material))

    def _add_material(self, tree: dict[str, Any]) -> None:
        metallic, roughness = self.surface_means()
        tree["materials"] = [
            {
                "pbrMetallicRoughness": {
                    "baseColorFactor": [1.0, 1.0, 1.0, 1.0],
                    "metallicFactor": metallic,
                    "roughnessFactor": roughness,
                },
                "alphaMode": "OPAQUE" if (self.alpha > OPAQUE).all() else "BLEND",
            }
        ]
        for primitive in _primitives(tree):
            primitive["material"] = 0

    def surface_means(self) -> tuple[float, float]:
        """Metallic and roughness, averaged over the area of the surface."""
        a, b, c = (self.vertices[self.faces[:, k]].astype(np.float64) for k in range(3))
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        area = area / area.sum() if area.sum() > 0 else np.full(len(area), 1 / len(area))
        metallic, roughness = (
            float((x[self.faces].mean(axis=1) * area).sum().clip(0, 1))
            for x in (self.metallic, self.roughness)
        )
        return metallic, roughness


def _primitives(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for mesh in tree["meshes"]:
        yield from mesh["primitives"]
