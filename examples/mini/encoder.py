"""Train `dinov2-mini-reg` on toybox pictures, without labels.

Two views of one object (either domain, other camera, light and background) are a positive pair; a
fifth of the patches is hidden, until the last steps. Five terms, all on the stream (tokens before
the last norm, LayerNorm without affine):

* contrast: class tokens of the two views find each other among the batch (InfoNCE);
* contrast of single patches with the other view's class token: each knows what it is part of;
* contrast of patches of the two views that show the same spot of the object, found from cameras and
  depths alone: each knows which part of it it is;
* another view: class and registers draw the object alone as a camera elsewhere sees it, small;
* pixels: every patch, hidden or not, predicts its own 14 x 14 picture at half resolution.

Colour is part of what the tokens must say, so it is never jittered where colour counts; there, half
of the batch are twins of the other half, seen from the same cameras, one part in another colour. In
every second step one of the two views is grey, its tones mapped by a random curve, and heads of
their own compare shape alone: of objects without a scene around them first, then of all.
Usage: python examples/mini/encoder.py [--steps N] [--threads N]
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from cache import TRAIN_OBJECTS, VIEWS, cameras, pictures, places, twins
from modalign_plugins.encoders.dinov2 import MEAN, STD, Dinov2Encoder
from modalign_plugins.encoders.dinov2_sizes import MINI_REG, MINI_STREAM
from numpy.typing import NDArray
from publish import WEIGHTS, publish
from torch import Tensor, nn
from torch.nn import functional as F
from trainer import Trainer, quick, widen

# Added in the first half to draws in 0..1 that order the views of an object: assets are paired more
# often there, for their shapes always.
SCENE_DELAY = torch.tensor([0.5, 0.5, 0.0, 0.0])
KINDS = ("color", "shape")
LOCAL = 4  # patches of each picture that are compared with the other's class token
SPOTS = 6  # and with patches that show the same spot: covered by so much of the object, so near
COVERED, NEAR = 0.3, 0.15
DRAWN = 28  # side of the other view that class and registers draw
ASSETS = [view for view, kind in enumerate(VIEWS) if kind == "asset"]
HIDDEN = 0.2
TEMPERATURE = 0.1
PATCH = MINI_REG["patch_size"]
SHIFT, SCALE = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))


Rows = NDArray[Any]


class Learner(nn.Module):
    """The encoder with the heads that only training needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        dim = model.config.hidden_size
        self.cls_heads = nn.ModuleDict({kind: self._head(dim) for kind in KINDS})
        self.patch_heads = nn.ModuleDict({kind: self._head(dim) for kind in KINDS})
        self.spot_heads = nn.ModuleDict({kind: self._head(dim) for kind in KINDS})
        self.view = nn.Sequential(
            nn.Linear(5 * dim + 4, 512),
            nn.GELU(),
            nn.Linear(512, 512),
            nn.GELU(),
            nn.Linear(512, 3 * DRAWN**2),
        )
        self.pixels = nn.Sequential(nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, 147))

    def _head(self, dim: int) -> nn.Module:
        return nn.Sequential(nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, 96))

    def tokens(self, images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Class and registers (B, 5, D), patches (B, P, D) of (B, 3, H, W), `hidden` (B, P)."""
        embedded = self.model.embeddings(images, bool_masked_pos=hidden)
        found = self.model.encoder(embedded).last_hidden_state
        found = F.layer_norm(found, found.shape[-1:])
        return found[:, : -hidden.shape[1]], found[:, -hidden.shape[1] :]

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


def spots(
    first: Tensor, second: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Patches of two views that show the same spot, of `SPOTS` random ones of each first view.

    From `cache.places` (B, P, 4) of either view: the patches of the first view (B, S) and of the
    second (B, S), whether both do show that spot (B, S), and where it is (B, S, 3).
    """
    gap = torch.cdist(first[..., :3], second[..., :3])
    gap, there = (gap + 1e3 * (second[:, None, :, 3] < COVERED)).min(-1)
    fits = (first[..., 3] >= COVERED) & (gap < NEAR)
    here = torch.multinomial(fits.float() + 1e-6, SPOTS, generator=generator)
    where = first[..., :3].gather(1, here.unsqueeze(-1).expand(-1, -1, 3))
    return here, there.gather(1, here), fits.gather(1, here), where


def spot_nce(a: Tensor, b: Tensor, fits: Tensor, where: Tensor) -> Tensor:
    """InfoNCE both ways of features (B, S, E) of the same spots, where there is such a pair.

    Spots that are near each other on one object do not compete.
    """
    a, b = (F.normalize(side.float(), dim=-1).flatten(0, 1) for side in (a, b))
    out = torch.block_diag(*(torch.cdist(where, where) < 1.5 * NEAR).unbind())
    out = out.fill_diagonal_(False) | ~fits.flatten()
    logits = a @ b.T / TEMPERATURE
    truth = torch.arange(len(a))[fits.flatten()]
    both = [side.masked_fill(out, -1e4)[truth] for side in (logits, logits.T)]
    return F.cross_entropy(torch.cat(both), truth.repeat(2))


def info_nce(a: Tensor, b: Tensor) -> Tensor:
    """InfoNCE of rows (k B, E) with their counterparts among (B, E), k rows for each in turn."""
    logits = F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(b)).repeat(len(a) // len(b)))


def chosen(
    pairs: int, kind: str, early: bool, generator: torch.Generator
) -> tuple[Rows, Rows, Rows]:
    """Objects, views and whether of the twin, (2 B,) each: first views, then second ones.

    Where colours are compared, half are twins of the other half, seen from the same cameras.
    """
    drawn = pairs if kind == "shape" else pairs // 2
    rows = torch.randint(TRAIN_OBJECTS, (drawn,), generator=generator)
    order = torch.rand(drawn, len(VIEWS), generator=generator)
    order = (order + early * (1 + (kind == "shape")) * SCENE_DELAY).argsort(1)[:, :2]
    copies = pairs // drawn
    twin = torch.arange(copies).bool().repeat_interleave(drawn)
    return (
        rows.repeat(2 * copies).numpy(),
        order.repeat(copies, 1).T.flatten().numpy(),
        twin.repeat(2).numpy(),
    )


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=22_000)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)  # initial weights; every later draw has its own generator
    cache, changed, spot, stands = pictures(), twins(), places(), cameras()
    encoder = Dinov2Encoder(MINI_REG, MINI_STREAM)
    widen(encoder.model)
    place(encoder.model)
    encoder.model.set_attn_implementation("eager")
    learner = Learner(encoder.model.requires_grad_(True)).train()
    trainer = Trainer("encoder", dict(learner.named_parameters()), steps=options.steps, lr=1.5e-3)

    def shown(rows: Rows, views: Rows, twin: Rows) -> Tensor:
        """Pictures (B, 3, H, W) in 0..1 of objects or, where `twin`, of their twins."""
        found = cache[rows, views]
        found[twin] = changed[rows[twin], views[twin]]
        return torch.from_numpy(found).permute(0, 3, 1, 2).float() / 255

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        kind = KINDS[step % 2]
        early = step < options.steps // 2
        rows, views, twin = chosen(options.pairs, kind, early, generator)
        images = shown(rows, views, twin)
        lit = images if kind == "color" else images[: options.pairs]
        if kind == "shape":
            # Without tones there is nothing easy to begin with: they go little by little.
            amount = min(1.0, 2 * step / options.steps)
            grey = toned(images[options.pairs :], amount, generator)
            images = torch.cat([lit, grey])
        images = (images - SHIFT) / SCALE
        truth = learner.targets(images)
        chance = HIDDEN if step < options.steps * 9 // 10 else 0.0
        hidden = torch.rand(truth.shape[:2], generator=generator) < chance
        local = torch.randint(truth.shape[1], (len(images), LOCAL), generator=generator)
        where = torch.from_numpy(spot[rows, views]).float()
        *same, fits, at = spots(*where.chunk(2), generator)
        # Every coloured picture draws another one of its object.
        other = torch.randint(2, (len(lit),), generator=generator).numpy()
        other = np.where(np.array(ASSETS)[other] == views[: len(lit)], 1 - other, other)
        other = np.array(ASSETS)[other]
        drawing = shown(rows[: len(lit)], other, twin[: len(lit)])
        drawing = F.adaptive_avg_pool2d((drawing - SHIFT) / SCALE, DRAWN).flatten(1)
        stand = torch.from_numpy(stands[rows[: len(lit)], other])
        with quick():
            whole, grid = learner.tokens(images, hidden)

            def pick(patches: Tensor, index: Tensor) -> Tensor:
                return patches.gather(1, index.unsqueeze(-1).expand(-1, -1, grid.shape[-1]))

            pixels = F.mse_loss(learner.pixels(grid), truth, reduction="none").mean(-1)
            first, second = learner.cls_heads[kind](whole[:, 0]).chunk(2)
            # (LOCAL, 2 B, E), for the class tokens of each half to be compared with in turn.
            parts = learner.patch_heads[kind](pick(grid, local)).transpose(0, 1)
            here, there = (
                learner.spot_heads[kind](pick(half, index))
                for half, index in zip(grid.chunk(2), same, strict=True)
            )
            told = [whole[: len(lit)].flatten(1), stand.sin(), stand.cos()]
            elsewhere = F.mse_loss(learner.view(torch.cat(told, 1)), drawing)
        mine, theirs = (half.flatten(0, 1) for half in parts.chunk(2, dim=1))
        terms = {
            f"{kind}": (info_nce(first, second) + info_nce(second, first)) / 2,
            f"{kind}_patches": (info_nce(mine, second) + info_nce(theirs, first)) / 2,
            f"{kind}_spots": spot_nce(here, there, fits, at),
            "elsewhere": elsewhere,
            # Visible patches weigh less: copying is easy, yet it keeps colour in every token.
            "pixels": (pixels * torch.where(hidden, 1.0, 0.3)).mean(),
        }
        weights = (1.0, 0.5, 1.0, 4.0, 2.0)
        loss = sum(w * term for w, term in zip(weights, terms.values(), strict=True))
        return {"loss": loss, **terms}

    trainer.run(losses, batch_size=2 * options.pairs)
    publish(encoder.save, WEIGHTS / "dinov2-mini-reg.safetensors", trainer)


if __name__ == "__main__":
    main()
