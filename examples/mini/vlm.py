"""Train `qwen2.5-vl-mini` and its tokenizer on toybox: read captions, look at pictures, answer.

Five kinds of rows, all in the templates the adapter uses later:

* a generation prompt, its closed turn, [IMG], then another caption of the same object;
* the same with a picture and an edit instruction, then a caption of the edited object;
* a caption and a question about it; a picture and a question; a picture and "describe it".

What follows [IMG] is where soft tokens will stand: the model learns to bring there what the prompt
says. Usage: python examples/mini/vlm.py [--steps N]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from cache import pictures, texts
from modalign_plugins.vlms import qwen2_5_vl_mini as mini
from modalign_plugins.vlms.qwen2_5_vl_prompts import Qwen25VLPrompts, pad_right
from numpy.typing import NDArray
from PIL import Image
from publish import WEIGHTS, publish
from torch import Tensor
from torch.nn import functional as F
from trainer import RUNS, Trainer, widen

from modalign import Prompt

KINDS = {"generate": 14, "edit": 6, "read": 4, "look": 6, "describe": 2}
DESCRIBE = ("describe the picture.", "what does the picture show?")


Row = dict[str, Any]


def corpus(rows: Sequence[Row]) -> list[str]:
    """Texts the tokenizer is trained on."""
    found = list(DESCRIBE)
    for row in rows:
        found += row["short"] + row["long"]
        found += [part for pair in row["questions"] for part in pair]
        found += [edit["instruction"] for edit in row["edits"]]
    return found


class Rows:
    """Batches of token ids with the loss weight of each position."""

    def __init__(
        self, prompts: Qwen25VLPrompts, known: Sequence[Row], cache: NDArray[np.uint8]
    ) -> None:
        self.prompts = prompts
        self.known = known
        self.cache = cache

    def picture(self, index: int, rng: random.Random) -> Image.Image:
        """Some view of a training object."""
        return Image.fromarray(self.cache[index, rng.randrange(self.cache.shape[1])])

    def words(self, text: str) -> list[int]:
        """Ids of an answer with its end."""
        return list(self.prompts.tokenizer.encode(f"{text}<|im_end|>\n").ids)

    def row(
        self, kind: str, length: str, rng: random.Random
    ) -> tuple[list[int], list[int], list[Image.Image]]:
        """What is asked, what is to be answered, and the pictures in it."""
        seen = kind in ("edit", "look", "describe")
        index = rng.randrange(len(self.cache) if seen else len(self.known))
        images = [self.picture(index, rng)] if seen else []
        known = self.known[index]
        if kind == "generate":
            asked = self.prompts.row(Prompt(rng.choice(known[length])))
            return asked, self.words(rng.choice(known["short"])), images
        if kind == "edit":
            edit = rng.choice(known["edits"])
            asked = self.prompts.row(Prompt(edit["instruction"], tuple(images)))
            return asked, self.words(rng.choice(edit["short"])), images
        if kind == "describe":
            question, answer = rng.choice(DESCRIBE), rng.choice(known["short"])
        else:
            question, answer = rng.choice(known["questions"])
        if kind == "read":
            question = f"{rng.choice(known[length])}. {question}"
        chat = self.prompts.chat([question], images or None, [answer])
        ids, labels = chat["input_ids"][0].tolist(), chat["labels"][0].tolist()
        start = sum(label == -100 for label in labels)
        return ids[:start], ids[start:], images

    def batch(self, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """A batch and its weights (B, P): answers count fully, what is asked a little."""
        rng = random.Random(step)
        # One length per batch, so that little of it is padding.
        length = "long" if rng.random() < 0.3 else "short"
        rows: list[list[int]] = []
        weights: list[list[int]] = []
        images: list[Image.Image] = []
        for kind, count in KINDS.items():
            for _ in range(count):
                asked, answer, shown = self.row(kind, length, rng)
                quiet = {self.prompts.ids.image_pad, self.prompts.ids.start}
                rows.append(asked + answer)
                weights.append([0 if word in quiet else 1 for word in asked] + [10] * len(answer))
                images += shown
        return self.prompts.batch(rows, images), pad_right(weights, 0).float() / 10


def main() -> None:
    """Train and publish the folder that `weights="pretrained"` reads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    known = texts()
    adapter = mini.fresh(corpus(known[:600]))
    model = adapter.model.train()
    widen(model)
    # Tied to the output: logits of unit hidden states then start with deviation 1.
    torch.nn.init.normal_(model.model.language_model.embed_tokens.weight, std=192**-0.5)
    language, ids = model.model.language_model, adapter.prompts.ids
    rows = Rows(adapter.prompts, known, pictures())
    trainer = Trainer("vlm", dict(model.named_parameters()), steps=options.steps, lr=1.5e-3)

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch, weights = rows.batch(step)
        words = batch["input_ids"]
        table = language.embed_tokens.weight
        embedded = language.embed_tokens(words)
        is_start = (words == ids.start).unsqueeze(-1)
        embedded = torch.where(is_start, table[: ids.start].mean(0), embedded)
        found = model.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"])
        is_picture = (words == ids.image_pad).unsqueeze(-1)
        embedded = embedded.masked_scatter(is_picture, torch.cat(list(found.pooler_output)))
        hidden = language(
            inputs_embeds=embedded, position_ids=adapter.places(batch), use_cache=False
        ).last_hidden_state
        counted = weights[:, 1:] > 0
        logits = model.lm_head(hidden[:, :-1][counted])
        each = F.cross_entropy(logits, words[:, 1:][counted], reduction="none")
        weight = weights[:, 1:][counted]
        answers = weight == 1
        return {
            "loss": (each * weight).sum() / weight.sum(),
            "answers": each[answers].mean(),
            "right": (logits.argmax(-1) == words[:, 1:][counted])[answers].float().mean(),
        }

    trainer.run(losses, batch_size=sum(KINDS.values()))
    # The folder is written whole first, then its weights are taken over with their history.
    mini.save(adapter, RUNS / "vlm" / "folder")
    target = WEIGHTS / "qwen2.5-vl-mini"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (target / name).write_bytes((RUNS / "vlm" / "folder" / name).read_bytes())
    weights = RUNS / "vlm" / "folder" / "model.safetensors"
    publish(
        lambda path: path.write_bytes(weights.read_bytes()),
        "qwen2.5-vl-mini/model.safetensors",
        trainer,
    )


if __name__ == "__main__":
    main()
