"""Meshes as files hold them: parts that have colours, or textures that repeat, of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modalign.assets.mesh import Mesh, linear_from_srgb, srgb_from_linear
from modalign.assets.surface import Surface
from modalign.assets.textured import texture_colors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PaintedMesh(Surface):
    """A triangle mesh whose parts may have different textures.

    Attributes:
        vertices: (V, 3) float32, world frame.
        faces: (F, 3) int64, counter-clockwise from outside.
        vertex_colors: (V, 3) float32 in 0..1, as displayed (sRGB); a texture's light is multiplied
            by theirs.
        normals: (V, 3) float32 unit vectors; from the geometry if not given.
        uv: (V, 2) float32: 0, 0 is a texture's top left corner, 1, 1 its bottom right, and beyond
            it repeats.
        textures: of (H, W, 3) uint8 each, as displayed (sRGB), rows from the top.
        texture_of: (V,) int64, the index of a vertex's texture, -1 for none; the corners of a
            face have the same.

    Raises:
        ValueError: arrays have wrong shapes, hold numbers that are not finite, or name what does
            not exist.
    """

    vertices: Floats
    faces: NDArray[np.int64]
    vertex_colors: Floats
    normals: Floats | None
    uv: Floats
    textures: tuple[NDArray[np.uint8], ...]
    texture_of: NDArray[np.int64]

    def __post_init__(self) -> None:
        plain = Mesh(self.vertices, self.faces, self.vertex_colors, self.normals)
        count = len(plain.vertices)
        if self.uv.shape != (count, 2) or not np.isfinite(self.uv).all():
            raise ValueError(f"uv must be ({count}, 2) finite numbers, got {self.uv.shape}")
        if (
            self.texture_of.shape != (count,)
            or not ((self.texture_of >= -1) & (self.texture_of < len(self.textures))).all()
        ):
            raise ValueError(
                f"texture_of must be ({count},) of -1..{len(self.textures) - 1}, "
                f"got {self.texture_of.shape}"
            )
        if (self.texture_of[plain.faces] != self.texture_of[plain.faces[:, :1]]).any():
            raise ValueError("the corners of a face must have the same texture")
        for name in ("vertices", "faces", "vertex_colors"):
            object.__setattr__(self, name, getattr(plain, name))
        object.__setattr__(self, "normals", plain.vertex_normals)

    @property
    def vertex_normals(self) -> Floats:
        """Unit normals (V, 3)."""
        assert self.normals is not None
        return self.normals

    def _paint(self, corners: Any, weights: Any) -> Any:
        color = (self.vertex_colors[corners] * weights).sum(axis=1)
        texture_of = self.texture_of[corners[:, 0]]
        for number in np.unique(texture_of[texture_of >= 0]):
            rows = texture_of == number
            uv = (self.uv[corners[rows]] * weights[rows]).sum(axis=1)
            texel = texture_colors(self.textures[number], uv, repeats=True)
            color[rows] = srgb_from_linear(linear_from_srgb(texel) * linear_from_srgb(color[rows]))
        return color
