"""Evaluation while a run goes on: how close its tokens are to real ones, on a fixed set."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modalign import assets
from modalign.errors import BuildError, WeightsError
from modalign.metrics.alignment import AlignmentMeter
from modalign.metrics.retrieval import pooled, ranks, recall_at
from modalign.pipeline import Pipeline
from modalign.specs import Example
from modalign.training.showing import Showing
from modalign.training.trackers import Picture

AT_ONCE = 16  # prompts sampled together
SHOWN = 4  # of them as pictures


class Watch:
    """Samples the prompts of `examples` with the weights of a moment, from the same noise always.

    It has a whole head of its own, so it works beside one that FSDP has cut; the frozen parts are
    the pipeline's. Make it before the pipeline is spread.
    """

    def __init__(
        self, pipeline: Pipeline, examples: Sequence[Example], showing: Showing | None = None
    ) -> None:
        """`showing` makes assets of the first examples, at most 16; None makes none."""
        head, soft_tokens = copy.deepcopy(pipeline.head), copy.deepcopy(pipeline.soft_tokens)
        self.pipeline = Pipeline(
            pipeline.recipe, pipeline.stream, pipeline.parts, head, soft_tokens
        ).to(pipeline.device)
        self.pipeline.eval().requires_grad_(False)
        self.showing = showing
        self.prompts = [example.prompt for example in examples]
        batches = [examples[k : k + AT_ONCE] for k in range(0, len(examples), AT_ONCE)]
        encoder = pipeline.parts.encoder
        self.targets = [
            encoder.encode(encoder.prepare([example.image for example in batch]))
            for batch in batches
        ]

    @torch.no_grad()
    def __call__(self, trained: Mapping[str, Tensor]) -> dict[str, float | Picture]:
        """Cosine, squared error and norm ratio of each group, R@1 of the first, and pictures.

        Pictures are there if something that is installed decodes the space, and "generated" is if
        assets are asked for.
        """
        self.pipeline.load_state_dict(trained)
        meter, sampled = AlignmentMeter(), []
        for number, target in enumerate(self.targets):
            first = number * AT_ONCE
            asked = self.prompts[first : first + AT_ONCE]
            stream = self.pipeline.align(asked, seed=first)
            meter.update(stream, {name: target[name].to(stream[name]) for name in stream})
            sampled.append(stream)
        found: dict[str, float | Picture] = {
            f"{group}_{metric}": value
            for group, values in meter.compute().items()
            for metric, value in values.items()
        }
        group = self.pipeline.stream.names[0]
        queries = torch.cat([pooled(stream[group]) for stream in sampled]).cpu()
        gallery = torch.cat([pooled(target[group]) for target in self.targets]).cpu()
        places = torch.arange(len(queries))
        found[f"{group}_R@1"] = recall_at(ranks(queries, gallery, places, places), (1,))["R@1"]
        if self.showing is not None:
            found["generated"] = self.showing(sampled[0])
        return {**found, **self._pictures({name: t[:SHOWN] for name, t in sampled[0].items()})}

    def _pictures(self, stream: dict[str, Tensor]) -> dict[str, Picture]:
        try:
            shown = self.pipeline.preview(stream)
        except (BuildError, WeightsError):
            return {}
        return {
            f"sample-{number}": picture.pixels
            for number, picture in enumerate(shown)
            if isinstance(picture, assets.Picture)
        }
