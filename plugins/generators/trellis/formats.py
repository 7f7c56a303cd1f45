"""What a latent can be decoded to, and the networks that each format needs."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modalign import GenerationError, Mesh

from .flexicubes import Surface

if TYPE_CHECKING:
    from modalign.specs import Asset

    from .gaussians import Gaussians

# Decoders by format, in pipeline.json's words.
FORMATS = {
    "mesh": ("slat_decoder_mesh",),
    "gaussians": ("slat_decoder_gs",),
    "radiance-field": ("slat_decoder_rf",),
    "textured-mesh": ("slat_decoder_mesh", "slat_decoder_gs"),
}
MESHING = "modalign.meshing"


def decoders(format: str, roles: Collection[str]) -> tuple[str, ...]:
    """The decoders that a format needs, of the roles that a pipeline has.

    Raises:
        ValueError: no format has that name.
        GenerationError: this pipeline cannot make it; the message lists what it can.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    missing = [role for role in FORMATS[format] if role not in roles]
    if missing:
        able = [name for name, needed in FORMATS.items() if set(needed) <= set(roles)]
        raise GenerationError(
            f"this generator cannot make {format!r}: its pipeline.json names no "
            f"{' and no '.join(missing)}; it can make {', '.join(able)}"
        )
    if format == "textured-mesh":
        _require_meshing()
    return FORMATS[format]


def as_mesh(surface: Surface) -> Mesh:
    """An asset of the vertices that triangles use, coloured."""
    used, faces = torch.unique(surface.faces, return_inverse=True)

    def array(x: Tensor) -> Any:
        return x.detach().float().cpu().numpy()

    return Mesh(
        vertices=array(surface.vertices[used]),
        faces=faces.cpu().numpy(),
        vertex_colors=array(surface.color[used, :3].clamp(0, 1)),
    )


def textured(mesh: Mesh, gaussians: Gaussians) -> Asset:
    """The mesh with a texture baked from renderings of the Gaussians.

    Raises:
        GenerationError: this installation of modalign bakes no textures.
    """
    _require_meshing()
    from importlib import import_module

    asset: Asset = import_module(MESHING).textured(mesh, gaussians)
    return asset


def _require_meshing() -> None:
    if find_spec(MESHING) is None:
        raise GenerationError(
            "format 'textured-mesh' bakes a texture, which this version of modalign cannot; "
            "ask for 'mesh' (coloured vertices) or 'gaussians'"
        )
