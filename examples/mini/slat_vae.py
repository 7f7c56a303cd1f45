"""Train the SLAT VAE: what lies in each active voxel to 8 numbers, and back to a mesh.

The decoder is supervised where FlexiCubes reads it, at the vertices of its 64^3 grid: signed
distance and colour of the true object. Deformations and weights are pulled to zero.
Usage: python examples/mini/slat_vae.py [--steps N]
"""

from __future__ import annotations

import argparse

import shapes
import torch
from configs import MESH_DECODER_ARGS, SLAT_ENCODER_ARGS
from modalign_plugins.generators.trellis.flexicubes import DEFORM, WEIGHTS, grid_attributes
from modalign_plugins.generators.trellis.slat_vae import SLatEncoder, SLatMeshDecoder
from modalign_plugins.generators.trellis.sparse import SparseTensor
from modalign_plugins.generators.trellis.structure_vae import sample_posterior
from publish import CKPTS, publish_module
from shapes import CELLS, COLOR_TABLE, OBJECTS
from torch import Tensor, nn
from torch.nn import functional as F
from trainer import Trainer


def build() -> nn.ModuleDict:
    """Encoder and decoder with fresh weights."""
    return nn.ModuleDict(
        {
            "encoder": SLatEncoder(**SLAT_ENCODER_ARGS),
            "decoder": SLatMeshDecoder(**MESH_DECODER_ARGS),
        }
    )


def main() -> None:
    """Train and publish both halves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build().train()
    nn.init.normal_(model["encoder"].out_layer.weight, std=0.05)
    nn.init.normal_(model["decoder"].out_layer.weight, std=0.02)
    trainer = Trainer("slat_vae", dict(model.named_parameters()), steps=options.steps, lr=2e-3)

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(OBJECTS, (options.batch,), generator=generator).tolist()
        coords, features, sdf, color = shapes.batch([shapes.shape(row) for row in rows])
        voxels = SparseTensor.from_coords(coords, features)
        mean, logvar = model["encoder"](voxels)
        latent = sample_posterior(mean, logvar, generator)
        raw = model["decoder"](voxels.replace(latent))
        grid = grid_attributes(raw, CELLS)
        # Far from the surface only the sign matters: distances are compared within two cells.
        distance = F.l1_loss(grid.sdf.clamp(-2.5, 2.5), sdf.clamp(-2, 2))
        near = sdf.abs() < 1.5
        paint = F.l1_loss(grid.color[near, :3], COLOR_TABLE[color[near].long()])
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        plain = raw.feats[:, DEFORM].square().mean() + raw.feats[:, WEIGHTS].square().mean()
        with torch.no_grad():
            sign = ((grid.sdf < 0) == (sdf < 0)).float().mean()
        return {
            "loss": distance + 2 * paint + 1e-3 * kl + 0.1 * plain,
            "distance": distance,
            "paint": paint,
            "kl": kl,
            "sign": sign,
        }

    trainer.run(losses, batch_size=options.batch, log_every=25)
    publish_module(model["encoder"], SLAT_ENCODER_ARGS, CKPTS / "slat_enc", trainer)
    publish_module(model["decoder"], MESH_DECODER_ARGS, CKPTS / "slat_dec_mesh", trainer)


if __name__ == "__main__":
    main()
