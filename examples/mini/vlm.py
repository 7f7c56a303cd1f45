"""Train `qwen2.5-vl-mini` and its tokenizer on toybox: read captions, look at pictures, answer.

Five kinds of rows, all in the templates the adapter uses later:

* a generation prompt, its closed turn, [IMG], then another caption of the same object;
* the same with a picture and an edit instruction, then a caption of the edited object;
* a caption and questions about it; a picture and questions; a picture and "describe it".

What follows [IMG] is where soft tokens will stand: the model learns to bring there what the prompt
says. Sight is slow to come through the language model alone, so a linear head that only training
needs also reads from each picture's tokens which words its long caption has (softmax over the
vocabulary against the set of words, arXiv:2411.03313).

Stage 2 goes on with pictures alone and leaves the language part as it is, so that what was trained
on its prompts does not notice.
Usage: python examples/mini/vlm.py --stage 1|2 [--steps N]
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
from modalign_plugins.vlms.qwen_vl import QwenVL
from modalign_plugins.vlms.qwen_vl_prompts import SYSTEM, QwenVLPrompts, pad_right
from numpy.typing import NDArray
from PIL import Image
from publish import WEIGHTS, publish
from torch import Tensor, nn
from torch.nn import functional as F
from trainer import RUNS, Trainer, quick, widen

import modalign
from modalign import Prompt

# Rows of each kind in a batch, and pictures that only the head sees, by stage.
KINDS = {
    1: {"generate": 12, "edit": 6, "read": 3, "look": 9, "describe": 2},
    2: {"look": 12, "describe": 4},
}
EXTRA = {1: 24, 2: 48}
STEPS = {1: 4400, 2: 6500}
RATES = {1: 1.5e-3, 2: 7.5e-4}
TURNS = 4  # questions about one caption or picture
DESCRIBE = ("describe the picture.", "what does the picture show?")


Row = dict[str, Any]
Turn = tuple[list[int], list[int]]
BLANK = Image.new("RGB", (1, 1))  # stands for a picture whose patches are added later


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
        self, prompts: QwenVLPrompts, known: Sequence[Row], cache: NDArray[np.uint8], stage: int
    ) -> None:
        self.kinds, self.extra = KINDS[stage], EXTRA[stage]
        self.prompts = prompts
        self.known = known
        self.cache = cache
        # Tokens of the system's turn, which only a row's first turn has.
        self.head = len(prompts.tokenizer.encode(SYSTEM).ids)

    def picture(self, index: int, rng: random.Random) -> Image.Image:
        """Some view of a training object."""
        return Image.fromarray(self.cache[index, rng.randrange(self.cache.shape[1])])

    def words(self, text: str) -> list[int]:
        """Ids of an answer with its end."""
        return list(self.prompts.tokenizer.encode(f"{text}<|im_end|>\n").ids)

    def row(self, kind: str, length: str, rng: random.Random) -> tuple[list[Turn], list[int]]:
        """What is asked and answered in turn, and of which object a picture is shown."""
        seen = kind in ("edit", "look", "describe")
        index = rng.randrange(len(self.cache) if seen else len(self.known))
        known = self.known[index]
        shown = [index] if seen else []
        if kind == "generate":
            asked = self.prompts.row(Prompt(rng.choice(known[length])))
            return [(asked, self.words(rng.choice(known["short"])))], shown
        if kind == "edit":
            edit = rng.choice(known["edits"])
            asked = self.prompts.row(Prompt(edit["instruction"], (BLANK,)))
            return [(asked, self.words(rng.choice(edit["short"])))], shown
        if kind == "describe":
            pairs = [(rng.choice(DESCRIBE), rng.choice(known["short"]))]
        else:
            pairs = rng.sample(known["questions"], min(TURNS, len(known["questions"])))
        turns = []
        for number, (question, answer) in enumerate(pairs):
            if kind == "read" and number == 0:
                question = f"{rng.choice(known[length])}. {question}"
            asked = self.prompts.chat([question], [BLANK] if seen and number == 0 else None)
            ids = asked["input_ids"][0].tolist()
            turns.append((ids if number == 0 else ids[self.head :], self.words(answer)))
        return turns, shown

    def batch(self, step: int) -> tuple[dict[str, Tensor], Tensor, list[int]]:
        """A batch, its weights (B, P), and the object of each picture.

        Answers count fully, what is asked a little. More pictures follow than the rows show.
        """
        rng = random.Random(step)
        # One length per batch, so that little of it is padding.
        length = "long" if rng.random() < 0.3 else "short"
        rows: list[list[int]] = []
        weights: list[list[int]] = []
        pictured: list[int] = []
        quiet = {self.prompts.ids.image_pad, self.prompts.ids.start}
        for kind, count in self.kinds.items():
            for _ in range(count):
                turns, shown = self.row(kind, length, rng)
                rows.append([word for asked, answer in turns for word in (*asked, *answer)])
                weights.append([])
                for asked, answer in turns:
                    weights[-1] += [0 if word in quiet else 1 for word in asked]
                    weights[-1] += [10] * len(answer)
                pictured += shown
        pictured += [rng.randrange(len(self.cache)) for _ in range(self.extra)]
        images = [self.picture(index, rng) for index in pictured]
        return self.prompts.batch(rows, images), pad_right(weights, 0).float() / 10, pictured

    def caption_words(self, objects: Sequence[int], vocabulary: int) -> Tensor:
        """Which words the long captions of `objects` have, (B, V), each row of sum 1."""
        found = torch.zeros(len(objects), vocabulary)
        for row, index in enumerate(objects):
            found[row, self.prompts.tokenizer.encode(self.known[index]["long"][0]).ids] = 1
        return found / found.sum(1, keepdim=True)


def beginning(stage: int, known: Sequence[Row]) -> QwenVL:
    """A fresh adapter, or the first stage's with only the visual tower to train."""
    if stage == 1:
        adapter = mini.fresh(corpus(known[:600]))
        widen(adapter.model)
        # Tied to the output: logits of unit hidden states then start with deviation 1.
        table = adapter.model.model.language_model.embed_tokens.weight
        torch.nn.init.normal_(table, std=192**-0.5)
    else:
        adapter = modalign.installed().get("vlms", "qwen2.5-vl-mini").build()
        adapter.model.model.visual.requires_grad_(True)
    adapter.model.train().set_attn_implementation("eager")
    return adapter


def main() -> None:
    """Train one stage and publish the folder that `weights="pretrained"` reads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", type=int, choices=(1, 2), required=True)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    known = texts()
    adapter = beginning(options.stage, known)
    model = adapter.model
    language, ids = model.model.language_model, adapter.prompts.ids
    rows = Rows(adapter.prompts, known, pictures(), options.stage)
    words_of = nn.Linear(192, len(language.embed_tokens.weight))
    learnt = dict(model.named_parameters()) | {
        f"words_of.{name}": value for name, value in words_of.named_parameters()
    }
    name = "vlm" if options.stage == 1 else "vlm-sight"
    trainer = Trainer(
        name, learnt, steps=options.steps or STEPS[options.stage], lr=RATES[options.stage]
    )

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch, weights, pictured = rows.batch(step)
        words = batch["input_ids"]
        table = language.embed_tokens.weight
        embedded = language.embed_tokens(words)
        is_start = (words == ids.start).unsqueeze(-1)
        embedded = torch.where(is_start, table[: ids.start].mean(0), embedded)
        found = model.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"])
        seen = torch.stack(list(found.pooler_output))  # (pictures, tokens, C)
        is_picture = (words == ids.image_pad).unsqueeze(-1)
        embedded = embedded.masked_scatter(is_picture, seen)
        told = words_of(seen).logsumexp(1).log_softmax(-1)
        sight = -(told * rows.caption_words(pictured, told.shape[-1])).sum(-1).mean()
        batch["image_grid_thw"] = batch["image_grid_thw"][: len(pictured) - rows.extra]
        with quick():
            hidden = language(
                inputs_embeds=embedded, position_ids=adapter.places(batch), use_cache=False
            ).last_hidden_state
            counted = weights[:, 1:] > 0
            logits = model.lm_head(hidden[:, :-1][counted]).float()
        each = F.cross_entropy(logits, words[:, 1:][counted], reduction="none")
        weight = weights[:, 1:][counted]
        answers = weight == 1
        return {
            "loss": (each * weight).sum() / weight.sum() + 0.5 * sight,
            "answers": each[answers].mean(),
            "right": (logits.argmax(-1) == words[:, 1:][counted])[answers].float().mean(),
            "sight": sight,
        }

    trainer.run(losses, batch_size=sum(rows.kinds.values()))
    # The folder is written whole first, then its weights are taken over with their history.
    folder = RUNS / name / "folder"
    mini.save(adapter, folder)
    target = WEIGHTS / "qwen2.5-vl-mini"
    target.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "tokenizer.json"):
        (target / file).write_bytes((folder / file).read_bytes())
    weights = folder / "model.safetensors"
    publish(
        lambda path: path.write_bytes(weights.read_bytes()),
        target / "model.safetensors",
        trainer,
    )


if __name__ == "__main__":
    main()
