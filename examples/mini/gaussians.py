"""Train the mini's Gaussian decoder: latents of the mesh decoder's own VAE to splats.

The latents stay as they are. A decoder is right when its splats look like the true surface in its
own colours, without light, from anywhere around it.
Usage: python examples/mini/gaussians.py [--steps N]
"""

from __future__ import annotations

import argparse
import math

import shapes
import torch
from configs import GAUSSIAN_DECODER_ARGS
from flows import slat_latents
from modalign_plugins.generators.trellis.flexicubes import (
    COLOR,
    CORNERS,
    MESH_CHANNELS,
    NUM_COLORS,
    SDF,
    extract_surfaces,
)
from modalign_plugins.generators.trellis.gaussians import SLatGaussianDecoder
from modalign_plugins.generators.trellis.sparse import Coordinates, SparseTensor
from publish import CKPTS, publish_module
from shapes import CELLS, COLOR_TABLE, Shape
from torch import Tensor
from torch.nn import functional as F
from trainer import Trainer

from modalign.rendering.cameras import Camera, look
from modalign.rendering.rasteriser import intersector

SIZE = 96  # px of the pictures that are compared
FINE = 2  # rays per pixel and axis in the true ones
RADIUS, FOV = 2.0, math.radians(40)


def true_surface(true: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Vertices (V, 3), faces (F, 3) and colours (V, 3) of a shape, as FlexiCubes cuts its grid."""
    coords = F.pad(true.voxels, (1, 0)).int()
    fine = Coordinates(coords).subdivided.subdivided
    corner = fine.coords[:, None, 1:].long() + torch.tensor(CORNERS)  # (N, 8, 3)
    rows = torch.searchsorted(shapes.key(true.vertices), shapes.key(corner))
    raw = torch.zeros(len(fine), MESH_CHANNELS)
    raw[:, SDF] = true.sdf[rows] + 1 / CELLS  # which the extraction takes away again
    color = COLOR_TABLE[true.color[rows].long()].clamp(0.02, 0.98)
    raw[:, COLOR] = F.pad(torch.logit(color), (0, NUM_COLORS - 3)).flatten(1)
    (surface,) = extract_surfaces(SparseTensor(fine, raw), CELLS)
    return surface.vertices, surface.faces, surface.color[:, :3]


def true_picture(
    vertices: Tensor, faces: Tensor, colors: Tensor, camera: Camera
) -> tuple[Tensor, Tensor]:
    """Colour on black (SIZE, SIZE, 3) and cover (SIZE, SIZE) of a surface without light."""
    side = SIZE * FINE
    triangle, weights = intersector(vertices.numpy(), faces.numpy())(camera, side)
    hit = torch.from_numpy(triangle >= 0)
    corner = faces[torch.from_numpy(triangle)[hit]]
    seen = torch.zeros(side * side, 4)
    share = torch.from_numpy(weights[triangle >= 0]).float()
    seen[hit, :3] = (colors[corner] * share[..., None]).sum(dim=1)
    seen[hit, 3] = 1
    seen = seen.view(SIZE, FINE, SIZE, FINE, 4).mean(dim=(1, 3))
    return seen[..., :3], seen[..., 3]


def anywhere(generator: torch.Generator) -> Camera:
    """A camera all around, from 40 degrees below to 70 above."""
    yaw, height = torch.rand(2, generator=generator).tolist()
    return look(2 * math.pi * yaw, math.radians(-40 + 110 * height), RADIUS, FOV)


def main() -> None:
    """Train and publish the decoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    voxels, latents = slat_latents()
    model = SLatGaussianDecoder(**GAUSSIAN_DECODER_ARGS).train()
    torch.nn.init.normal_(model.out_layer.weight, std=0.02)
    trainer = Trainer("gaussians", dict(model.named_parameters()), steps=options.steps, lr=1e-3)

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(latents), (options.batch,), generator=generator).tolist()
        coords = [F.pad(voxels[row], (1, 0), value=k) for k, row in enumerate(rows)]
        x = SparseTensor.from_coords(torch.cat(coords).int(), torch.cat([latents[r] for r in rows]))
        made = model.gaussians(model(x))
        color = cover = x.feats.new_zeros(())
        for row, splats in zip(rows, made, strict=True):
            camera = anywhere(generator)
            seen, alpha = splats.view(camera, SIZE)
            true_color, true_alpha = true_picture(*true_surface(shapes.shape(row)), camera)
            color = color + (seen - true_color).abs().mean() / len(rows)
            cover = cover + (alpha - true_alpha).abs().mean() / len(rows)
        return {"loss": 10 * (color + cover), "color": color, "cover": cover}

    trainer.run(losses, batch_size=options.batch, log_every=25)
    publish_module(model, GAUSSIAN_DECODER_ARGS, CKPTS / "slat_dec_gs", trainer)


if __name__ == "__main__":
    main()
