"""What generators make: meshes and pictures that save themselves and can be looked at.

World frame of everything in space: right-handed, z up, the object inside -0.5..0.5.
"""

from __future__ import annotations

from modalign.assets.mesh import Mesh, linear_from_srgb
from modalign.assets.picture import Picture
from modalign.assets.writing import FORMATS, check_suffix, write_whole

__all__ = ["FORMATS", "Mesh", "Picture", "check_suffix", "linear_from_srgb", "write_whole"]
