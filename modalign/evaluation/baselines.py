"""What a trained head has to beat: no condition at all, and the nearest caption's real tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from modalign.pipeline import Pipeline
from modalign.sampling import sample
from modalign.tokens import TokenStream


@torch.no_grad()
def unconditional(pipeline: Pipeline, seeds: Sequence[int]) -> TokenStream:
    """What the head makes of the null condition, zeros: a stream (B, K, D), one seed per sample.

    Noise, steps and projection are those of `Pipeline.align`.
    """
    recipe = pipeline.recipe
    null = pipeline.soft_tokens.new_zeros(len(seeds), *pipeline.soft_tokens.shape[1:])  # (B, S, C)
    stream = sample(
        pipeline.head,
        pipeline.stream,
        null,
        flow=recipe.flow,
        sampler=recipe.sampler.model_copy(update={"guidance": 1.0}),
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
    )
    return pipeline.stream.project(stream) if recipe.sampler.project else stream


class NearestText:
    """The most similar of a list of texts: cosine of TF-IDF over words, the first one on ties.

    Words are runs of letters and digits, in lower case. A word's weight is its count times
    1 + log((1 + n) / (1 + m)), with m of the n texts holding it. Words no text has are ignored.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(words(text)) for text in texts]
        found = sorted(set().union(*counts))
        self._columns = {word: column for column, word in enumerate(found)}
        holding = np.zeros(len(found))
        for count in counts:
            holding[[self._columns[word] for word in count]] += 1
        self._weights = 1 + np.log((1 + len(texts)) / (1 + holding))
        self._texts = self._vectors(counts)  # (T, V)

    def __call__(self, queries: Sequence[str]) -> list[int]:
        """Index of the most similar text, for each query."""
        similarity = self._vectors([Counter(words(query)) for query in queries]) @ self._texts.T
        return [int(index) for index in similarity.argmax(axis=1)]

    def _vectors(self, counts: Sequence[Counter[str]]) -> NDArray[np.float32]:
        vectors = np.zeros((len(counts), len(self._columns)), np.float32)
        for row, count in zip(vectors, counts, strict=True):
            for word, number in count.items():
                column = self._columns.get(word)
                if column is not None:
                    row[column] = number * self._weights[column]
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: NDArray[np.float32] = vectors / np.maximum(length, 1e-12)
        return unit


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[a-z0-9]+", text.lower())
