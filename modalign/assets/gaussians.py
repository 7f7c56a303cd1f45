"""Gaussian splats.

Legend: K splats.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modalign.assets import splat_files
from modalign.assets.shown import Translucent
from modalign.assets.tensors import check_tensors
from modalign.assets.writing import check_suffix, write_whole
from modalign.rendering.splatting import splat

if TYPE_CHECKING:
    from modalign.rendering.cameras import Camera

SH_0 = 0.28209479177387814  # the constant spherical harmonic


@dataclass(frozen=True, eq=False)
class Gaussians(Translucent):
    """Splats of one object, z up, inside -0.5..0.5; all tensors on one device, of one float type.

    Attributes:
        xyz: (K, 3) centres.
        scaling: (K, 3) standard deviations along the own axes, above 0.
        rotation: (K, 4) unit quaternions (w, x, y, z).
        opacity: (K, 1) in 0..1.
        features_dc: (K, 1, 3) colour as the constant spherical harmonic's coefficient.

    Raises:
        ValueError: a tensor has another shape or type, or holds what the above rules out.
    """

    xyz: Tensor
    scaling: Tensor
    rotation: Tensor
    opacity: Tensor
    features_dc: Tensor

    def __post_init__(self) -> None:
        count = len(self.xyz)
        shapes = {
            "xyz": (count, 3),
            "scaling": (count, 3),
            "rotation": (count, 4),
            "opacity": (count, 1),
            "features_dc": (count, 1, 3),
        }
        check_tensors({name: getattr(self, name) for name in shapes}, shapes, "splat")
        if not bool((self.scaling > 0).all()):
            raise ValueError(
                "scaling must be above 0; it holds standard deviations, not logarithms"
            )
        if not bool(((self.opacity >= 0) & (self.opacity <= 1)).all()):
            raise ValueError("opacity must be in 0..1; it holds no logits")
        if not bool(((self.rotation.norm(dim=1) - 1).abs() < 1e-3).all()):
            raise ValueError("rotation must hold unit quaternions (w, x, y, z); normalise them")

    def __len__(self) -> int:
        return len(self.xyz)

    @property
    def color(self) -> Tensor:
        """RGB (K, 3), as displayed; may exceed 1."""
        return (SH_0 * self.features_dc[:, 0] + 0.5).clamp(min=0)

    @property
    def axes(self) -> Tensor:
        """Own axes (K, 3, 3) as columns, each as long as the standard deviation along it."""
        w, x, y, z = self.rotation.unbind(1)
        rows = [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ]
        return torch.stack(rows, dim=1).view(-1, 3, 3) * self.scaling[:, None]

    @property
    def covariance(self) -> Tensor:
        """Covariance matrices (K, 3, 3)."""
        return self.axes @ self.axes.transpose(1, 2)

    def to(self, *where: Any) -> Gaussians:
        """The same elsewhere or in another type, as `Tensor.to`."""
        return Gaussians(
            **{field.name: getattr(self, field.name).to(*where) for field in fields(self)}
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write PLY or .splat, whole or not at all; equal splats give equal files.

        Both are turned (x, y, z) -> (x, -z, y), upright in viewers of splats, whose y points down.
        PLY keeps float32; .splat has 32 bytes each, with colours and rotations of 8 bits.

        Raises:
            ValueError: the extension is unknown, or there is no splat to write.
            OSError: the file cannot be written.
        """
        path = Path(path)
        check_suffix(path, "gaussians")
        if len(self) == 0:
            raise ValueError(f"cannot save {path.name!r}: there are no splats")
        if path.suffix.lower() == ".ply":
            content = splat_files.write_ply(self.ply_columns())
        else:
            content = splat_files.write_splat(self)
        write_whole(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Gaussians:
        """What `save` wrote as PLY, equal up to the rounding of float32.

        Spherical harmonics above the constant one are not read.

        Raises:
            ValueError: the file is no PLY of splats; the message says what is wrong.
            OSError: it cannot be read.
        """
        return cls(**splat_files.read_ply(Path(path)))

    def ply_columns(self) -> dict[str, Tensor]:
        """The columns (K,) of the usual PLY of splats, float32, turned as `save` says."""
        return splat_files.ply_columns(self)

    def view(self, camera: Camera, size: int) -> tuple[Tensor, Tensor]:
        """A picture on black (size, size, 3) and its cover (size, size), both differentiable.

        Over a background b it is `picture + (1 - alpha) * b`. Colours may exceed 1.
        """
        return splat(self.xyz, self.axes, self.opacity[:, 0], self.color, camera, size)
