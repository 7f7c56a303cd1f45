"""From a raw mesh to one to use: repaired, with fewer faces, and with a texture made of views.

Needs the extra `mesh`: pip install modalign[mesh].
"""

from __future__ import annotations

from modalign.meshing.layout import Layout, unwrap
from modalign.meshing.libraries import require
from modalign.meshing.repair import clean, fill_holes, remove_hidden, simplify
from modalign.meshing.texturing import bake, textured
from modalign.meshing.views import View

__all__ = [
    "Layout",
    "View",
    "bake",
    "clean",
    "fill_holes",
    "remove_hidden",
    "require",
    "simplify",
    "textured",
    "unwrap",
]
