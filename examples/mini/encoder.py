"""Train `dinov2-mini-reg` on toybox pictures, without labels.

Two views of one object (either domain, other camera, light and background) are a positive pair;
of each view's patches 45 % are left out and a fifth of the others hidden, until the last steps,
which see whole pictures. Three terms, all on the stream (tokens before the last norm, LayerNorm
without affine):

* contrast: class tokens of the two views find each other among the batch (InfoNCE);
* contrast of the mean patch, so that patches know what they are part of;
* pixels: every patch, hidden or not, predicts its own 14 x 14 picture at half resolution.

No colour is ever jittered: colour is part of what the tokens must say. In a third of the steps the
whole batch is grey instead, so that objects can only be told apart by shape.
Usage: python examples/mini/encoder.py [--steps N]
"""

from __future__ import annotations

import argparse

import torch
from cache import pictures
from modalign_plugins.encoders.dinov2 import MEAN, MINI_REG, MINI_STREAM, STD, Dinov2Encoder
from publish import publish
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from trainer import Trainer, widen

SCENE_DELAY = torch.tensor([0.5, 0.5, 0.0, 0.0])  # added to draws: assets are paired more often
PATCH = MINI_REG["patch_size"]
SHIFT, SCALE = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))


class Learner(nn.Module):
    """The encoder with the heads that only training needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        dim = model.config.hidden_size
        self.cls_head = nn.Sequential(nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, 96))
        self.patch_head = nn.Sequential(nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, 96))
        self.pixels = nn.Sequential(nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, 147))

    def tokens(self, images: Tensor, hidden: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Class token (B, D) and kept patches (B, k, D) of pictures (B, 3, H, W).

        Patches `hidden` (B, P) are masked; only patches `kept` (B, k) are looked at, by index.
        """
        embedded = self.model.embeddings(images, bool_masked_pos=hidden)
        prefix, patches = embedded.tensor_split([embedded.shape[1] - hidden.shape[1]], dim=1)
        kept = kept.unsqueeze(-1).expand(-1, -1, patches.shape[-1])
        looked_at = torch.cat([prefix, patches.gather(1, kept)], dim=1)
        found = self.model.encoder(looked_at).last_hidden_state
        found = F.layer_norm(found, found.shape[-1:])
        return found[:, 0], found[:, prefix.shape[1] :]

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


def info_nce(a: Tensor, b: Tensor, temperature: float = 0.1) -> Tensor:
    """Symmetric InfoNCE of paired rows (B, E)."""
    logits = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / temperature
    truth = torch.arange(len(a))
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--start", help="a state to take the weights from, places made anew")
    parser.add_argument("--whole", type=int, default=80, help="last steps that see all patches")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(
        options.threads
    )  # small products: one thread each for two trainings is faster
    torch.manual_seed(0)  # initial weights; every later draw has its own generator
    cache = pictures()
    encoder = Dinov2Encoder(MINI_REG, MINI_STREAM)
    widen(encoder.model)
    place(encoder.model)
    learner = Learner(encoder.model.requires_grad_(True)).train()
    if options.start:
        known = load_file(options.start)
        own = {key.removeprefix("average."): known[key] for key in known if "average." in key}
        learner.load_state_dict(own)
        place(encoder.model)
    trainer = Trainer("encoder", dict(learner.named_parameters()), steps=options.steps, lr=1.5e-3)

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        objects = torch.randint(len(cache), (options.pairs,), generator=generator)
        order = torch.rand(options.pairs, cache.shape[1], generator=generator)
        order = (order + SCENE_DELAY).argsort(1)[:, :2]
        flat = torch.cat([order[:, 0], order[:, 1]])
        picked = torch.from_numpy(cache[objects.repeat(2).numpy(), flat.numpy()])
        images = picked.permute(0, 3, 1, 2).float() / 255
        if step % 3 == 2:
            images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        images = (images - SHIFT) / SCALE
        patches = (images.shape[-1] // PATCH) ** 2
        whole = step >= options.steps - options.whole
        count = patches if whole else patches * 55 // 100
        kept = torch.rand(len(images), patches, generator=generator).argsort(1)[:, :count]
        chance = 0.0 if whole else 0.2
        hidden = torch.rand(len(images), patches, generator=generator) < chance
        cls, grid = learner.tokens(images, hidden, kept)
        truth = learner.targets(images)
        truth = truth.gather(1, kept.unsqueeze(-1).expand(-1, -1, truth.shape[-1]))
        error = F.mse_loss(learner.pixels(grid), truth, reduction="none").mean(-1)
        hidden = hidden.gather(1, kept)
        # Visible patches weigh less: copying is easy, yet it keeps colour in every token.
        pixels = (error * torch.where(hidden, 1.0, 0.3)).mean()
        shape_or_color = "contrast_grey" if step % 3 == 2 else "contrast"
        contrast = info_nce(*learner.cls_head(cls).chunk(2))
        parts = info_nce(*learner.patch_head(grid.mean(1)).chunk(2))
        return {
            "loss": contrast + 0.5 * parts + 2.0 * pixels,
            shape_or_color: contrast,
            "contrast_patches": parts,
            "pixels": pixels,
        }

    trainer.run(losses, batch_size=2 * options.pairs)
    publish(encoder.save, "dinov2-mini-reg.safetensors", trainer)


if __name__ == "__main__":
    main()
