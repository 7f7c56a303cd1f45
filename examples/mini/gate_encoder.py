"""The encoder's gate: linear probes on its tokens, both domains, objects it was not trained on.

Asked for: family, main and second colour at least 95 %, part label per patch at least 85 %. Family
is read from all tokens: class, registers, and the patches' mean. Colours are read where they are,
from the mean of the patches that mostly show the part, for there a generator finds them; objects
without such a patch are left out (": seen" is the share that has one). "of all" is what the
family's features say of colours without being told where to look.
Usage: python examples/mini/gate_encoder.py [--weights FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from cache import WORLD
from gates import report
from modalign_plugins.datasets.toybox import COLORS, FAMILIES
from modalign_plugins.datasets.toybox.families import CATALOGUE
from modalign_plugins.encoders.dinov2 import Dinov2Encoder
from PIL import Image
from probes import linear_probe
from torch import Tensor

import modalign

PARTS = sorted({f"{family}/{part}" for family in FAMILIES for part in CATALOGUE[family].places})


def gather(
    encoder: Dinov2Encoder, domain: str, split: str, rows: Sequence[int]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Tokens (M, N, D), part label per patch (M, P) with -1 for background, and labels (M,)."""
    draw = WORLD.scene if domain == "scene" else WORLD.asset
    tokens, parts = [], []
    labels: dict[str, list[int]] = {"family": [], "main colour": [], "second colour": []}
    for start in range(0, len(rows), 64):
        samples = [draw(row, split) for row in rows[start : start + 64]]
        pixels = encoder.prepare([Image.fromarray(sample.image) for sample in samples])
        tokens.append(encoder.tokens(pixels))
        for sample in samples:
            toy = sample.object
            labels["family"].append(FAMILIES.index(toy.family))
            labels["main colour"].append(COLORS.index(toy.color))
            second = toy.second or toy.parts[0]
            labels["second colour"].append(COLORS.index(second.color))
            names = [PARTS.index(f"{toy.family}/{part.name}") for part in toy.parts]
            parts.append(patch_labels(sample.part_ids, names, 14))
    return (
        torch.cat(tokens),
        torch.from_numpy(np.stack(parts)),
        {name: torch.tensor(values) for name, values in labels.items()},
    )


def showing(tokens: Tensor, parts: Tensor, split: str, second: bool) -> tuple[Tensor, Tensor]:
    """Mean (V, D) of the patches that show each object's main or second part, and who has any."""
    means, seen = [], []
    for index, (patches, shown) in enumerate(zip(tokens[:, 5:], parts, strict=True)):
        toy = WORLD.object(index, split)
        part = (toy.second if second else None) or toy.parts[0]
        mask = shown == PARTS.index(f"{toy.family}/{part.name}")
        seen.append(bool(mask.any()))
        means.append(patches[mask].mean(0))
    kept = torch.tensor(seen)
    return torch.stack(means)[kept], kept


def patch_labels(part_ids: np.ndarray, names: Sequence[int], patch: int) -> np.ndarray:
    """The part that covers most of each patch, among patches half covered by the object."""
    side = part_ids.shape[0] // patch
    cells = part_ids.reshape(side, patch, side, patch).transpose(0, 2, 1, 3).reshape(side**2, -1)
    counts = np.stack([(cells == k).sum(1) for k in range(len(names))], 1)  # (P, parts)
    found = np.array(names)[counts.argmax(1)]
    return np.where(counts.sum(1) * 2 >= patch * patch, found, -1)


def main() -> None:
    """Print and record the probes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--train", type=int, default=3000)
    parser.add_argument("--test", type=int, default=600)
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = modalign.installed().get("encoders", "dinov2-mini-reg")
    encoder = spec.build(weights=options.weights)
    results: dict[str, float] = {}
    for domain in ("asset", "scene"):
        known = gather(encoder, domain, "train", range(options.train))
        fresh = gather(encoder, domain, "val", range(options.test))

        def pooled(tokens: Tensor) -> Tensor:
            return torch.cat([tokens[:, :5].flatten(1), tokens[:, 5:].mean(1)], 1)

        for name in known[2]:
            found = linear_probe(pooled(known[0]), known[2][name], pooled(fresh[0]), fresh[2][name])
            results[f"{domain}: {name}" + ", of all" * (name != "family")] = found
        for name in ("main colour", "second colour"):
            (before, had), (after, has) = (
                showing(tokens, parts, split, name == "second colour")
                for (tokens, parts, _), split in ((known, "train"), (fresh, "val"))
            )
            results[f"{domain}: {name}"] = linear_probe(
                before, known[2][name][had], after, fresh[2][name][has]
            )
            results[f"{domain}: {name}: seen"] = float(has.float().mean())
        (seen, new) = (known[1] >= 0, fresh[1] >= 0)
        some = torch.randperm(int(seen.sum()), generator=torch.Generator().manual_seed(0))[:20000]
        results[f"{domain}: part per patch"] = linear_probe(
            known[0][:, 5:][seen][some],
            known[1][seen][some],
            fresh[0][:, 5:][new],
            fresh[1][new],
            steps=40,
        )
    asked = {
        name: 0.85 if "patch" in name else 0.95 for name in results if not name.endswith("seen")
    }
    report("encoder", results, asked)


if __name__ == "__main__":
    main()
