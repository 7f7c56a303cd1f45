"""What generators make: things in space and pictures that save themselves and can be looked at.

World frame of everything in space: right-handed, z up, the object inside -0.5..0.5. All of it
renders alike: `asset.render(views, size, cameras=, background=)`, `preview`, `turntable`.
"""

from __future__ import annotations

from modalign.assets.gaussians import Gaussians
from modalign.assets.mesh import Mesh, linear_from_srgb
from modalign.assets.painted import PaintedMesh
from modalign.assets.picture import Picture
from modalign.assets.radiance_field import RadianceField
from modalign.assets.reading import Placement, read_mesh
from modalign.assets.textured import TexturedMesh
from modalign.assets.writing import FORMATS, check_suffix, write_whole

__all__ = [
    "FORMATS",
    "Gaussians",
    "Mesh",
    "PaintedMesh",
    "Picture",
    "Placement",
    "RadianceField",
    "TexturedMesh",
    "check_suffix",
    "linear_from_srgb",
    "read_mesh",
    "write_whole",
]
