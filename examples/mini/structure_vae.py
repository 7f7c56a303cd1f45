"""Train the sparse-structure VAE: 16^3 surface cells to a 4^3 x 8 latent and back.

Usage: python examples/mini/structure_vae.py [--steps N]
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from cache import surface
from configs import DECODER_ARGS, ENCODER_ARGS, STRUCTURE
from modalign_plugins.generators.trellis.structure_vae import (
    SparseStructureDecoder,
    SparseStructureEncoder,
    sample_posterior,
)
from publish import CKPTS, publish_module
from torch import Tensor, nn
from torch.nn import functional as F
from trainer import Trainer


def build() -> nn.ModuleDict:
    """Encoder and decoder with fresh weights."""
    return nn.ModuleDict(
        {
            "encoder": SparseStructureEncoder(**ENCODER_ARGS),
            "decoder": SparseStructureDecoder(**DECODER_ARGS),
        }
    )


@torch.no_grad()
def to_unit_deviation(model: nn.ModuleDict, grid: Tensor) -> float:
    """Fold the latents' deviation into the convolutions around them, so that it becomes 1.

    TRELLIS has no normalisation of this latent: its flow model expects about unit scale.
    """
    scale = float(model["encoder"](grid)[0].std())
    last, first = model["encoder"].out_layer[2], model["decoder"].input_layer
    channels = last.out_channels // 2
    last.weight[:channels] /= scale
    last.bias[:channels] /= scale
    last.bias[channels:] -= 2 * math.log(scale)
    first.weight *= scale
    return scale


def main() -> None:
    """Train and publish both halves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cells = surface(STRUCTURE)
    model = build().to(memory_format=torch.channels_last_3d).train()
    trainer = Trainer("structure_vae", dict(model.named_parameters()), steps=options.steps, lr=2e-3)

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(cells), (options.batch,), generator=generator).numpy()
        grid = torch.from_numpy(np.asarray(cells[rows])).unsqueeze(1).float()
        mean, logvar = model["encoder"](grid)
        latent = sample_posterior(mean, logvar, generator)
        logits = model["decoder"](latent)
        cross = F.binary_cross_entropy_with_logits(logits, grid)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        with torch.no_grad():
            hit = ((logits > 0) & (grid > 0)).sum() / ((logits > 0) | (grid > 0)).sum()
        return {"loss": cross + 1e-3 * kl, "cross": cross, "kl": kl, "iou": hit}

    trainer.run(losses, batch_size=options.batch)
    some = torch.tensor(cells[:512]).unsqueeze(1).float()
    print(f"latent deviation {to_unit_deviation(model.eval(), some):.3f}, made 1")  # noqa: T201
    publish_module(model["encoder"], ENCODER_ARGS, CKPTS / "ss_enc", trainer)
    publish_module(model["decoder"], DECODER_ARGS, CKPTS / "ss_dec", trainer)


if __name__ == "__main__":
    main()
