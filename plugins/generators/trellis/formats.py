"""What a latent can be decoded to, and the networks that each format needs."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modalign import Gaussians, GenerationError, Mesh, Progress

from .flexicubes import Surface

if TYPE_CHECKING:
    from modalign.assets import TexturedMesh
    from modalign.specs import ProgressCallback

# Decoders by format, in pipeline.json's words.
FORMATS = {
    "mesh": ("slat_decoder_mesh",),
    "gaussians": ("slat_decoder_gs",),
    "radiance-field": ("slat_decoder_rf",),
    "textured-mesh": ("slat_decoder_mesh", "slat_decoder_gs"),
}
# The reference bakes from 100 pictures of 1,024 pixels; a quarter of the pixels takes a quarter of
# the time, and still has several for every texel of a texture of 1,024.
BAKED_VIEWS, BAKED_SIZE = 100, 512
# The reference keeps 5 % of the faces. Small meshes need none taken away.
KEPT_FACES, SMALL = 0.05, 20_000


def possible(roles: Collection[str]) -> tuple[str, ...]:
    """The formats that a pipeline of these roles can make."""
    return tuple(name for name, needed in FORMATS.items() if set(needed) <= set(roles))


def decoders(format: str, roles: Collection[str]) -> tuple[str, ...]:
    """The decoders that a format needs, of the roles that a pipeline has.

    Raises:
        ValueError: no format has that name.
        GenerationError: this pipeline cannot make it; the message lists what it can.
        ModalignError: a library that it takes is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    missing = [role for role in FORMATS[format] if role not in roles]
    if missing:
        raise GenerationError(
            f"this generator cannot make {format!r}: its pipeline.json names no "
            f"{' and no '.join(missing)}; it can make {', '.join(possible(roles))}"
        )
    if format == "textured-mesh":
        from modalign.meshing import require

        require("a texture")
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


@torch.no_grad()
def textured(
    mesh: Mesh, gaussians: Gaussians, progress: ProgressCallback | None = None
) -> TexturedMesh:
    """The mesh with a texture baked from pictures of the Gaussians all around.

    Raises:
        GenerationError: the mesh has no area, or no splat lies on it.
    """
    from modalign.meshing import View, textured
    from modalign.rendering.cameras import sphere

    views = []
    for number, camera in enumerate(sphere(BAKED_VIEWS), start=1):
        color, alpha = (x.float().cpu().numpy() for x in gaussians.view(camera, BAKED_SIZE))
        views.append(View(camera, color, alpha))
        if progress is not None:
            progress(Progress("pictures for the texture", number, BAKED_VIEWS))
    faces = min(len(mesh.faces), max(SMALL, round(len(mesh.faces) * KEPT_FACES)))
    try:
        return textured(mesh, views, faces=faces)
    except ValueError as error:
        raise GenerationError(f"stage 'texture': {error}") from error
