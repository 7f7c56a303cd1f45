"""The encoder's gate: linear probes on its tokens, both domains, objects it was not trained on.

Asked for: family, main and second colour at least 95 %, part label per patch at least 85 %. Family
is read from all tokens: class, registers, and the patches as a 4 x 4 grid of means, so that places
count. Colours are read where they are, from the mean of the patches that mostly show the part, for
there a generator finds them; objects without such a patch are left out (": seen" is the share that
has one). "of all" is what the family's features say of colours without being told where to look.
A patch's part is read from that patch alone. Probes are fitted to two views of each of the objects
that the encoder was trained on.
Usage: python examples/mini/gate_encoder.py [--weights FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from cache import PATCH, SIZE, TRAIN_OBJECTS, VIEWS, WORLD, drawn, pictures, samples
from gates import report
from modalign_plugins.datasets.toybox import COLORS, FAMILIES, Part, Sample, ToyObject
from modalign_plugins.datasets.toybox.families import CATALOGUE
from modalign_plugins.encoders.dinov2 import Dinov2Encoder
from numpy.typing import NDArray
from PIL import Image
from probes import linear_probe
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

import modalign

PARTS = sorted({f"{family}/{part}" for family in FAMILIES for part in CATALOGUE[family].places})


Known = tuple[Tensor, Tensor, dict[str, Tensor]]


def patch_labels(sample: Sample) -> NDArray[np.int16]:
    """The part (P,) that covers most of each patch, -1 where the object covers less than half."""
    side = sample.part_ids.shape[0] // PATCH
    cells = sample.part_ids.reshape(side, PATCH, side, PATCH).transpose(0, 2, 1, 3)
    cells = cells.reshape(side**2, -1)
    toy = sample.object
    names = [PARTS.index(f"{toy.family}/{part.name}") for part in toy.parts]
    counts = np.stack([(cells == k).sum(1) for k in range(len(names))], 1)  # (P, parts)
    found = np.array(names, np.int16)[counts.argmax(1)]
    return np.where(counts.sum(1) * 2 >= PATCH * PATCH, found, np.int16(-1))


def _train_parts(index: int) -> NDArray[np.int16]:
    return np.stack([patch_labels(sample) for sample in samples("train", VIEWS, index)])


def labels(split: str, rows: Sequence[int]) -> dict[str, Tensor]:
    """Family and colours (M,) of objects."""
    toys = [WORLD.object(row, split) for row in rows]
    return {
        "family": torch.tensor([FAMILIES.index(toy.family) for toy in toys]),
        "main colour": torch.tensor([COLORS.index(toy.color) for toy in toys]),
        "second colour": torch.tensor([COLORS.index(second(toy).color) for toy in toys]),
    }


def second(toy: ToyObject) -> Part:
    """The part whose colour a caption names second."""
    return toy.second or toy.parts[0]


def encoded(encoder: Dinov2Encoder, images: NDArray[np.uint8]) -> Tensor:
    """Tokens (M, N, D) of pictures (M, H, W, 3)."""
    found = []
    for start in track(range(0, len(images), 64), "encoding"):
        shown = [Image.fromarray(image) for image in images[start : start + 64]]
        found.append(encoder.tokens(encoder.prepare(shown)))
    return torch.cat(found)


def trained(encoder: Dinov2Encoder, domain: str, count: int) -> Known:
    """Two views of each of the first training objects: tokens, part of each patch, labels."""
    views = [view for view, kind in enumerate(VIEWS) if kind == domain]
    shape = (TRAIN_OBJECTS, len(VIEWS), (SIZE // PATCH) ** 2)
    parts = drawn("parts", shape, _train_parts, "i2")[:count, views]
    tokens = encoded(encoder, pictures()[:count, views].reshape(-1, SIZE, SIZE, 3))
    found = labels("train", range(count))
    return (
        tokens,
        torch.from_numpy(parts.reshape(len(tokens), -1).astype(np.int64)),
        {name: value.repeat_interleave(len(views)) for name, value in found.items()},
    )


def unseen(encoder: Dinov2Encoder, domain: str, count: int) -> Known:
    """The same of one view of each of the first validation objects."""
    drawings = [samples("val", [domain], index)[0] for index in range(count)]
    return (
        encoded(encoder, np.stack([sample.image for sample in drawings])),
        torch.from_numpy(np.stack([patch_labels(one) for one in drawings]).astype(np.int64)),
        labels("val", range(count)),
    )


def of_all(tokens: Tensor) -> Tensor:
    """Class, registers and a 4 x 4 grid of the patches' means, (M, 21 D)."""
    grid = tokens[:, 5:].unflatten(1, (SIZE // PATCH, -1)).permute(0, 3, 1, 2)
    return torch.cat([tokens[:, :5].flatten(1), F.avg_pool2d(grid, 2).flatten(1)], 1)


def showing(known: Known, split: str, part: Callable[[ToyObject], Part]) -> tuple[Tensor, Tensor]:
    """Mean (V, D) of the patches that show a part of each object, and who has any (M,)."""
    tokens, parts, _ = known
    count = int(len(tokens) / (2 if split == "train" else 1))
    toys = [WORLD.object(index, split) for index in range(count)]
    wanted = torch.tensor([PARTS.index(f"{toy.family}/{part(toy).name}") for toy in toys])
    mask = parts == wanted.repeat_interleave(len(tokens) // count)[:, None]
    sums = (tokens[:, 5:] * mask.unsqueeze(-1)).sum(1)
    kept = mask.any(1)
    return sums[kept] / mask[kept].sum(1, keepdim=True), kept


def probed(domain: str, known: Known, fresh: Known) -> dict[str, float]:
    """What linear probes read from each domain's tokens."""
    results = {}
    for name in known[2]:
        found = linear_probe(of_all(known[0]), known[2][name], of_all(fresh[0]), fresh[2][name])
        results[f"{domain}: {name}" + ", of all" * (name != "family")] = found
    places: dict[str, Callable[[ToyObject], Part]] = {
        "main colour": lambda toy: toy.parts[0],
        "second colour": second,
    }
    for name, part in places.items():
        (before, had), (after, has) = showing(known, "train", part), showing(fresh, "val", part)
        results[f"{domain}: {name}"] = linear_probe(
            before, known[2][name][had], after, fresh[2][name][has]
        )
        results[f"{domain}: {name}: seen"] = float(has.float().mean())
    shown, new = known[1] >= 0, fresh[1] >= 0
    results[f"{domain}: part per patch"] = linear_probe(
        known[0][:, 5:][shown], known[1][shown], fresh[0][:, 5:][new], fresh[1][new]
    )
    return results


def main() -> None:
    """Print and record the probes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--train", type=int, default=TRAIN_OBJECTS)
    parser.add_argument("--test", type=int, default=1000)
    options = parser.parse_args()
    spec = modalign.installed().get("encoders", "dinov2-mini-reg")
    encoder = spec.build(weights=options.weights)
    results: dict[str, float] = {}
    for domain in ("asset", "scene"):
        known = trained(encoder, domain, options.train)
        results |= probed(domain, known, unseen(encoder, domain, options.test))
    asked = {
        name: 0.85 if "patch" in name else 0.95 for name in results if not name.endswith("seen")
    }
    report("encoder", results, asked)


if __name__ == "__main__":
    main()
