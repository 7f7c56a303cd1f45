"""Train the two flow models of the mini TRELLIS on real encoder tokens of asset pictures.

`structure` makes the 4^3 x 8 latent of the sparse structure, `slat` the latents at its voxels. In
half of the samples the tokens are blurred with a little noise and put back on their manifold, so
that generated tokens, which are never exact, still work.
Usage: python examples/mini/flows.py structure|slat [--steps N]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import shapes
import torch
from cache import FOLDER, surface, tokens
from configs import SLAT_FLOW_ARGS, STRUCTURE, STRUCTURE_FLOW_ARGS
from modalign_plugins.generators.trellis.loader import load_model
from modalign_plugins.generators.trellis.slat_flow import SLatFlowModel
from modalign_plugins.generators.trellis.slat_vae import SLatEncoder
from modalign_plugins.generators.trellis.sparse import SparseTensor
from modalign_plugins.generators.trellis.structure_flow import SparseStructureFlowModel
from modalign_plugins.generators.trellis.structure_vae import SparseStructureEncoder
from publish import CKPTS, publish_module, write_pipeline
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from trainer import Trainer, compile_forward, quick

ASSETS = (2, 3)  # views of the cache
STEPS = {"structure": 15_000, "slat": 12_500}
BLUR = 0.3  # largest deviation of the noise on tokens, whose own is 1


@torch.no_grad()
def structure_latents() -> Tensor:
    """Latent means (objects, 8, 4, 4, 4) of every training object's structure."""
    path = FOLDER / "structure-latents.npy"
    if not path.exists():
        encoder = load_model(CKPTS / "ss_enc", SparseStructureEncoder)
        cells = surface(STRUCTURE)
        found = [
            encoder(torch.from_numpy(cells[k : k + 32]).unsqueeze(1).float())[0].numpy()
            for k in track(range(0, len(cells), 32), "encoding structures")
        ]
        np.save(path, np.concatenate(found))
    return torch.from_numpy(np.load(path))


@torch.no_grad()
def slat_latents() -> tuple[list[Tensor], list[Tensor]]:
    """Voxels (N, 3) and latent means (N, 8) of the measured training objects."""
    paths = [FOLDER / f"slat-{part}.npy" for part in ("voxels", "latents", "start")]
    if not all(path.exists() for path in paths):
        encoder = load_model(CKPTS / "slat_enc", SLatEncoder)
        voxels, latents = [], []
        for row in track(range(shapes.OBJECTS), "encoding shapes"):
            coords, features, _, _ = shapes.batch([shapes.shape(row)])
            latents.append(encoder(SparseTensor.from_coords(coords, features))[0].numpy())
            voxels.append(coords[:, 1:].numpy())
        start = np.cumsum([0, *map(len, voxels)])
        for path, array in zip(
            paths, (np.concatenate(voxels), np.concatenate(latents), start), strict=True
        ):
            np.save(path, array)
    voxels, latents, start = (torch.from_numpy(np.load(path)) for path in paths)
    counts = start.diff().tolist()
    return list(voxels.split(counts)), list(latents.split(counts))


class Conditions:
    """Tokens of asset pictures, dropped in a tenth of the draws, blurred in half of the rest."""

    def __init__(self) -> None:
        self.tokens = tokens()

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Conditions (B, N, D) for objects `rows`."""
        view = torch.randint(len(ASSETS), rows.shape, generator=generator) + ASSETS[0]
        real = torch.from_numpy(self.tokens[rows.numpy(), view.numpy()]).float()
        level = torch.rand(len(rows), 2, 1, 1, generator=generator)
        level = BLUR * level[:, 0] * (level[:, 1] < 0.5)
        blurred = real + level * torch.randn(real.shape, generator=generator)
        kept = torch.rand(len(rows), 1, 1, generator=generator) >= 0.1
        return F.layer_norm(blurred, real.shape[-1:]) * kept


def times(count: int, generator: torch.Generator) -> Tensor:
    """Times (B,), 1 is noise: a third as TRELLIS draws them, logit-normal, mean and deviation 1.

    The others are between 0.85 and 1, where nothing but the condition tells what to make: with few
    samples the flow otherwise learns the noisy picture long before it learns to look.
    """
    own = torch.sigmoid(1 + torch.randn(count, generator=generator))
    late = 1 - 0.15 * torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < 0.33, own, late)


def structure_losses(
    model: nn.Module, batch: int
) -> Callable[[int, torch.Generator], dict[str, Tensor]]:
    """The flow-matching loss of structure latents."""
    latents, conditions = structure_latents(), Conditions()
    compile_forward(model)

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(latents), (batch,), generator=generator)
        x_0, t = latents[rows], times(batch, generator)
        noise = torch.randn(x_0.shape, generator=generator)
        share = t.view(-1, 1, 1, 1, 1)
        x_t = (1 - share) * x_0 + share * noise
        with quick():
            found = model(x_t, 1000 * t, conditions.draw(rows, generator))
        return {"loss": F.mse_loss(found.float(), noise - x_0)}

    return losses


def slat_losses(
    model: nn.Module, batch: int
) -> Callable[[int, torch.Generator], dict[str, Tensor]]:
    """The flow-matching loss of normalised latents at the true voxels."""
    voxels, latents = slat_latents()
    mean, std = slat_statistics(latents)
    conditions = Conditions()

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(voxels), (batch,), generator=generator)
        picked = [voxels[row] for row in rows.tolist()]
        coords = torch.cat([F.pad(places, (1, 0), value=k) for k, places in enumerate(picked)])
        x_0 = torch.cat([(latents[row] - mean) / std for row in rows.tolist()])
        t = times(batch, generator)
        noise = torch.randn(x_0.shape, generator=generator)
        share = t[coords[:, 0].long()].unsqueeze(1)
        x_t = SparseTensor.from_coords(coords.int(), (1 - share) * x_0 + share * noise)
        # float32: at this batch its many small products gain nothing from bfloat16.
        found = model(x_t, 1000 * t, conditions.draw(rows, generator))
        return {"loss": F.mse_loss(found.feats, noise - x_0)}

    return losses


def slat_statistics(latents: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation (8,) of the latents, which pipeline.json carries."""
    together = torch.cat(latents)
    return together.mean(0), together.std(0)


def main() -> None:
    """Train one flow model and publish it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("structure", "slat"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.stage == "structure":
        model: nn.Module = SparseStructureFlowModel(**STRUCTURE_FLOW_ARGS)
        batch = options.batch or 32
        losses = structure_losses(model, batch)
    else:
        model = SLatFlowModel(**SLAT_FLOW_ARGS)
        batch = options.batch or 8
        losses = slat_losses(model, batch)
    trainer = Trainer(
        f"flows-{options.stage}",
        dict(model.train().named_parameters()),
        steps=options.steps or STEPS[options.stage],
        lr=1.5e-3,
        ema=0.996,
    )
    trainer.run(losses, batch_size=batch)
    if options.stage == "structure":
        publish_module(model, STRUCTURE_FLOW_ARGS, CKPTS / "ss_flow", trainer)
    else:
        publish_module(model, SLAT_FLOW_ARGS, CKPTS / "slat_flow", trainer)
        mean, std = slat_statistics(slat_latents()[1])
        write_pipeline(mean.tolist(), std.tolist())


if __name__ == "__main__":
    main()
