"""Train `dinov2-mini-reg` on toybox pictures, without labels.

Two views of one object (either domain, other camera, light and background) are a positive pair; a
fifth of the patches is hidden, until the last steps. Three terms, all on the stream (tokens before
the last norm, LayerNorm without affine):

* contrast: class tokens of the two views find each other among the batch (InfoNCE);
* contrast of single patches with the other view's class token: each knows what it is part of;
* pixels: every patch, hidden or not, predicts its own 14 x 14 picture at half resolution.

Colour is part of what the tokens must say, so it is never jittered where colour counts; there, half
of the batch are twins of the other half, seen from the same cameras, one part in another colour. In
every second step one of the two views is grey, its tones mapped by a random curve, and heads of
their own compare shape alone: of objects without a scene around them first, then of all.
Usage: python examples/mini/encoder.py [--steps N]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from cache import pictures, twins
from modalign_plugins.encoders.dinov2 import MEAN, STD, Dinov2Encoder
from modalign_plugins.encoders.dinov2_sizes import MINI_REG, MINI_STREAM
from publish import WEIGHTS, publish
from torch import Tensor, nn
from torch.nn import functional as F
from trainer import Trainer, quick, widen

# Added to draws in 0..1 that order an object's views: assets are paired more often, doubled always.
SCENE_DELAY = torch.tensor([0.5, 0.5, 0.0, 0.0])
KINDS = ("color", "shape")
LOCAL = 4  # patches of each picture that are compared
HIDDEN = 0.2
TEMPERATURE = 0.1
PATCH = MINI_REG["patch_size"]
SHIFT, SCALE = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))


class Learner(nn.Module):
    """The encoder with the heads that only training needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        dim = model.config.hidden_size
        self.cls_heads = nn.ModuleDict({kind: self._head(dim) for kind in KINDS})
        self.patch_heads = nn.ModuleDict({kind: self._head(dim) for kind in KINDS})
        self.pixels = nn.Sequential(nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, 147))

    def _head(self, dim: int) -> nn.Module:
        return nn.Sequential(nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, 96))

    def tokens(self, images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Class token (B, D) and patches (B, P, D) of pictures (B, 3, H, W), `hidden` (B, P)."""
        embedded = self.model.embeddings(images, bool_masked_pos=hidden)
        found = self.model.encoder(embedded).last_hidden_state
        found = F.layer_norm(found, found.shape[-1:])
        return found[:, 0], found[:, -hidden.shape[1] :]

    def targets(self, images: Tensor) -> Tensor:
        """Each patch at half resolution, (B, P, 147)."""
        half = F.avg_pool2d(images, 2)
        return F.unfold(half, PATCH // 2, stride=PATCH // 2).transpose(1, 2)


def place(model: nn.Module) -> None:
    """Start position embeddings (1, 1 + P, D) from waves of rows and columns, of amplitude 1.

    The library draws them with deviation 0.02, far below the patches' own: the encoder then trains
    into a bag of patches, and nothing after it can tell a shape.
    """
    table = model.embeddings.position_embeddings
    count, dim = table.shape[1] - 1, table.shape[2]
    axis = torch.arange(int(count**0.5), dtype=torch.float32)
    rates = 100.0 ** -(torch.arange(dim // 4) / (dim // 4))
    waves = torch.cat([f(axis[:, None] * rates) for f in (torch.sin, torch.cos)], dim=1)
    rows, columns = waves[:, None].expand(-1, len(axis), -1), waves.expand(len(axis), -1, -1)
    with torch.no_grad():
        table.zero_()
        table[0, 1:] = torch.cat([rows, columns], dim=-1).reshape(count, dim)


def toned(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, H, W) in 0..1 as grey ones, tones mapped by a curve of each one's own.

    A share of up to `amount` of the curve is random, the rest keeps tones as they are.
    """
    knots = torch.rand(len(images), 6, generator=generator)
    share = amount * torch.rand(len(images), 1, generator=generator)
    knots = torch.lerp(torch.linspace(0, 1, 6).expand_as(knots), knots, share)
    place = images.mean(1).flatten(1) * 4.999
    below = place.long()
    low, high = knots.gather(1, below), knots.gather(1, below + 1)
    grey = torch.lerp(low, high, place - below).view(len(images), 1, *images.shape[2:])
    return grey.expand(-1, 3, -1, -1)


def info_nce(a: Tensor, b: Tensor) -> Tensor:
    """InfoNCE of rows (k B, E) with their counterparts among (B, E), k rows for each in turn."""
    logits = F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(b)).repeat(len(a) // len(b)))


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--pairs", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # initial weights; every later draw has its own generator
    cache, changed = pictures(), twins()
    encoder = Dinov2Encoder(MINI_REG, MINI_STREAM)
    widen(encoder.model)
    place(encoder.model)
    encoder.model.set_attn_implementation("eager")
    learner = Learner(encoder.model.requires_grad_(True)).train()
    trainer = Trainer("encoder", dict(learner.named_parameters()), steps=options.steps, lr=1.5e-3)

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        kind = KINDS[step % 2]
        alone = kind == "shape" and step < options.steps // 2
        drawn = options.pairs if kind == "shape" else options.pairs // 2
        objects = torch.randint(len(cache), (drawn,), generator=generator).numpy()
        order = torch.rand(drawn, cache.shape[1], generator=generator)
        order = (order + (2 if alone else 1) * SCENE_DELAY).argsort(1)[:, :2]
        sides = [cache[objects, view] for view in order.T.numpy()]
        if kind == "color":
            others = [changed[objects, view] for view in order.T.numpy()]
            sides = [np.concatenate(both) for both in zip(sides, others, strict=True)]
        picked = torch.from_numpy(np.concatenate(sides))
        images = picked.permute(0, 3, 1, 2).float() / 255
        if kind == "shape":
            first, second = images.chunk(2)
            # Without tones there is nothing easy to begin with: they go little by little.
            amount = min(1.0, 2 * step / options.steps)
            images = torch.cat([first, toned(second, amount, generator)])
        images = (images - SHIFT) / SCALE
        truth = learner.targets(images)
        chance = HIDDEN if step < options.steps * 9 // 10 else 0.0
        hidden = torch.rand(truth.shape[:2], generator=generator) < chance
        chosen = torch.randint(truth.shape[1], (len(images), LOCAL), generator=generator)
        with quick():
            cls, grid = learner.tokens(images, hidden)
            error = F.mse_loss(learner.pixels(grid), truth, reduction="none").mean(-1)
            first, second = learner.cls_heads[kind](cls).chunk(2)
            local = grid.gather(1, chosen.unsqueeze(-1).expand(-1, -1, grid.shape[-1]))
            local = learner.patch_heads[kind](local).transpose(0, 1)  # (LOCAL, 2 B, E)
        here, there = (half.flatten(0, 1) for half in local.chunk(2, dim=1))
        # Visible patches weigh less: copying is easy, yet it keeps colour in every token.
        pixels = (error * torch.where(hidden, 1.0, 0.3)).mean()
        contrast = (info_nce(first, second) + info_nce(second, first)) / 2
        patches = (info_nce(here, second) + info_nce(there, first)) / 2
        return {
            "loss": contrast + 0.5 * patches + 2.0 * pixels,
            f"{kind}": contrast,
            f"{kind}_patches": patches,
            "pixels": pixels,
        }

    trainer.run(losses, batch_size=2 * options.pairs)
    publish(encoder.save, WEIGHTS / "dinov2-mini-reg.safetensors", trainer)


if __name__ == "__main__":
    main()
