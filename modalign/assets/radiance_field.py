"""Radiance fields on sparse voxels.

Legend: N voxels, R rank, D samples per axis.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from modalign.assets.shown import Translucent
from modalign.assets.tensors import check_tensors
from modalign.assets.writing import check_suffix, write_whole
from modalign.rendering.marching import march

if TYPE_CHECKING:
    from modalign.rendering.cameras import Camera

KIND = "modalign radiance field"  # in the header of a file
TENSORS = ("position", "trivec", "density", "features_dc")


@dataclass(frozen=True, eq=False)
class RadianceField(Translucent):
    """Voxels of one object with a small factorised field in each.

    At a point of a voxel each axis gives R numbers, interpolated between D samples; their products
    over the axes, d, make the density softplus(density . d) per unit of length and the colour
    sigmoid(0.2821 features_dc . d).

    Attributes:
        position: (N, 3) centres in 0..1, which is -0.5..0.5 in the world.
        trivec: (N, R, 3, D) factors along the axes.
        density: (N, R).
        features_dc: (N, R, 1, 3) colour as the constant spherical harmonic's coefficient.
        resolution: voxels along a side of the cube.

    Raises:
        ValueError: a tensor has another shape or type, holds numbers that are not finite, or two
            positions are of one voxel, or outside the cube.
    """

    SUPERSAMPLING: ClassVar[int] = 2

    position: Tensor
    trivec: Tensor
    density: Tensor
    features_dc: Tensor
    resolution: int = 64

    def __post_init__(self) -> None:
        if self.trivec.ndim != 4 or self.trivec.shape[2] != 3 or self.trivec.shape[3] < 2:
            raise ValueError(
                f"trivec must be (N, R, 3, D), D at least 2, got {tuple(self.trivec.shape)}"
            )
        count, rank, _, dim = self.trivec.shape
        shapes = {
            "position": (count, 3),
            "trivec": (count, rank, 3, dim),
            "density": (count, rank),
            "features_dc": (count, rank, 1, 3),
        }
        check_tensors({name: getattr(self, name) for name in shapes}, shapes, "voxel")
        if self.resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {self.resolution}")
        cells = self.cells
        if count and not bool(((cells >= 0) & (cells < self.resolution)).all()):
            raise ValueError(
                f"position must be inside 0..1, got {float(self.position.min()):.3g}.."
                f"{float(self.position.max()):.3g}"
            )
        if len(torch.unique(cells, dim=0)) < count:
            raise ValueError(
                f"two positions are of one voxel at resolution {self.resolution}; "
                "is the resolution another?"
            )

    def __len__(self) -> int:
        return len(self.position)

    @property
    def cells(self) -> Tensor:
        """Integer places (N, 3) of the voxels."""
        return (self.position * self.resolution).floor().long()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write safetensors, whole or not at all: the four tensors, the resolution in the header.

        Raises:
            ValueError: the extension is another, or there is no voxel to write.
            OSError: the file cannot be written.
        """
        from safetensors.torch import save

        path = Path(path)
        check_suffix(path, "radiance-field")
        if len(self) == 0:
            raise ValueError(f"cannot save {path.name!r}: the radiance field has no voxels")
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in TENSORS}
        # One entry: of several, safetensors would shuffle the order, and equal fields differ.
        write_whole(path, save(tensors, {KIND: json.dumps({"resolution": self.resolution})}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RadianceField:
        """What `save` wrote, the same bits.

        Raises:
            ValueError: the file holds no radiance field.
            OSError: it cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if KIND not in header or set(file.keys()) != set(TENSORS):
                    raise ValueError(f"{path.name} holds no radiance field of modalign")
                tensors = {name: file.get_tensor(name) for name in TENSORS}
        except SafetensorError as error:
            raise ValueError(f"{path.name} is damaged or no safetensors file: {error}") from error
        return cls(**tensors, resolution=json.loads(header[KIND])["resolution"])

    def view(self, camera: Camera, size: int) -> tuple[Tensor, Tensor]:
        """A picture on black (size, size, 3) and its cover (size, size), both differentiable.

        Over a background b it is `picture + (1 - alpha) * b`.
        """
        fields = (self.trivec, self.density, self.features_dc)
        return march(self.cells, *fields, self.resolution, camera, size)
