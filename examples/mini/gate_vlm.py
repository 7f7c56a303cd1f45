"""The VLM's gate: questions about pictures it never saw, and what its soft-token states hold.

Soft tokens are untrained here (as every aligner training starts): a linear probe reads family and
colours of unseen captions from the hidden states that follow the prompt.
Usage: python examples/mini/gate_vlm.py
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch
from cache import WORLD, texts
from gates import report
from modalign_plugins.datasets.toybox import COLORS, FAMILIES
from PIL import Image
from probes import linear_probe
from torch import Tensor

import modalign
from modalign import Prompt


def kind_of(question: str) -> str:
    """Which sort of question it is."""
    for start, kind in (("what is", "family"), ("which object", "family"), ("how many", "count")):
        if question.startswith(start):
            return kind
    if "colour" in question:
        return "colour"
    return "presence" if question.startswith(("is there", "are there")) else "proportion"


@torch.no_grad()
def states(vlm: modalign.specs.VLMAdapter, captions: list[str]) -> Tensor:
    """Hidden states (M, S C) of untrained soft tokens after each caption."""
    soft = torch.randn(1, 4, vlm.hidden_dim, generator=torch.Generator().manual_seed(0))
    found = []
    for start in range(0, len(captions), 64):
        asked = [Prompt(caption) for caption in captions[start : start + 64]]
        found.append(vlm.read(vlm.prepare(asked), soft).hidden.flatten(1))
    return torch.cat(found)


def main() -> None:
    """Print and record both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=150)
    parser.add_argument("--train", type=int, default=3000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    vlm = modalign.installed().get("vlms", "qwen2.5-vl-mini").build()
    right: dict[str, list[bool]] = defaultdict(list)
    for index in range(options.objects):
        draw = WORLD.asset if index % 2 else WORLD.scene
        image = Image.fromarray(draw(index, "val").image)
        for question, answer in WORLD.questions(index, "val")[:4]:
            right[f"picture: {kind_of(question)}"].append(vlm.answer(question, image) == answer)
    results = {name: sum(found) / len(found) for name, found in sorted(right.items())}

    known = texts()[: options.train]
    seen = states(vlm, [row["short"][k % len(row["short"])] for k, row in enumerate(known)])
    fresh = [WORLD.object(index, "val") for index in range(600)]
    new = states(vlm, [WORLD.captions(index, "val")[index % 6] for index in range(600)])
    truth = [WORLD.object(index) for index in range(options.train)]
    for name, read in {
        "family": lambda toy: FAMILIES.index(toy.family),
        "main colour": lambda toy: COLORS.index(toy.color),
        "second colour": lambda toy: COLORS.index((toy.second or toy.parts[0]).color),
    }.items():
        results[f"soft tokens: {name}"] = linear_probe(
            seen,
            torch.tensor([read(toy) for toy in truth]),
            new,
            torch.tensor([read(toy) for toy in fresh]),
        )
    asked = {"picture: family": 0.8, "picture: colour": 0.8}
    asked |= {name: 0.9 for name in results if name.startswith("soft")}
    report("vlm", results, asked)


if __name__ == "__main__":
    main()
