"""The VLM's gate: questions about pictures it never saw, and what its soft-token states hold.

A linear probe reads family and colours of unseen captions from the hidden states that follow the
prompt: of soft tokens that were trained with linear heads through the frozen VLM, as an aligner
trains its own, and of random ones, which only tell where such a training begins.
Usage: python examples/mini/gate_vlm.py
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence

import torch
from cache import WORLD, texts
from gates import report
from modalign_plugins.datasets.toybox import COLORS, FAMILIES
from PIL import Image
from probes import linear_probe
from torch import Tensor, nn
from torch.nn import functional as F

import modalign
from modalign import Prompt
from modalign.specs import VLMAdapter

NUM_SOFT = 16  # as the recipes have
READ = {
    "family": lambda toy: FAMILIES.index(toy.family),
    "main colour": lambda toy: COLORS.index(toy.color),
    "second colour": lambda toy: COLORS.index((toy.second or toy.parts[0]).color),
}


def kind_of(question: str) -> str:
    """Which sort of question it is."""
    for start, kind in (("what is", "family"), ("which object", "family"), ("how many", "count")):
        if question.startswith(start):
            return kind
    if "colour" in question:
        return "colour"
    return "presence" if question.startswith(("is there", "are there")) else "proportion"


@torch.no_grad()
def states(vlm: VLMAdapter, captions: Sequence[str], soft: Tensor) -> Tensor:
    """Hidden states (M, S C) of the soft tokens after each caption."""
    found = []
    for start in range(0, len(captions), 64):
        asked = [Prompt(caption) for caption in captions[start : start + 64]]
        found.append(vlm.read(vlm.prepare(asked), soft).hidden.flatten(1))
    return torch.cat(found)


def train(vlm: VLMAdapter, captions: Sequence[str], truth: Tensor, soft: Tensor) -> Tensor:
    """`soft` (1, S, C) after 300 steps with linear heads that tell `truth` (M, 3)."""
    soft = soft.clone().requires_grad_(True)
    torch.manual_seed(0)
    head = nn.Linear(soft[0].numel(), len(READ) * len(FAMILIES))
    optimizer = torch.optim.Adam([soft, *head.parameters()], lr=3e-3)
    for step in range(300):
        rows = random.Random(step).sample(range(len(captions)), 32)
        hidden = vlm.read(vlm.prepare([Prompt(captions[row]) for row in rows]), soft).hidden
        logits = head(hidden.flatten(1)).view(32, len(READ), -1)
        loss = F.cross_entropy(logits.flatten(0, 1), truth[rows].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return soft.detach()


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
        asked_of = WORLD.questions(index, "val")[:4]
        for domain, draw in (("asset", WORLD.asset), ("scene", WORLD.scene)):
            image = Image.fromarray(draw(index, "val").image)
            for question, answer in asked_of:
                hit = vlm.answer(question, image) == answer
                right[f"{domain}: {kind_of(question)}"].append(hit)
    results = {name: sum(found) / len(found) for name, found in sorted(right.items())}

    # The captions at every position but the third, which leaves the second part out.
    places = (0, 1, 3, 4, 5)
    seen = [row["short"][places[k % 5]] for k, row in enumerate(texts()[: options.train])]
    fresh = [WORLD.captions(index, "val")[places[index % 5]] for index in range(600)]
    known, truth = (
        torch.tensor(
            [[read(WORLD.object(k, split)) for read in READ.values()] for k in range(count)]
        )
        for split, count in (("train", options.train), ("val", 600))
    )
    draw = torch.Generator().manual_seed(0)
    soft = torch.randn(1, NUM_SOFT, vlm.hidden_dim, generator=draw)
    for kind, tokens in (("random", soft), ("trained", train(vlm, seen, known, soft))):
        before, after = states(vlm, seen, tokens), states(vlm, fresh, tokens)
        for k, name in enumerate(READ):
            results[f"{kind} soft tokens: {name}"] = linear_probe(
                before, known[:, k], after, truth[:, k]
            )
    asked = {name: 0.9 if "soft" in name else 0.8 for name in results}
    report("vlm", results, asked)


if __name__ == "__main__":
    main()
