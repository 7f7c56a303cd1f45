"""A data set beside the tokens that its pictures were encoded to."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from modalign.data.token_cache import TokenCache
from modalign.errors import ModalignError, SampleError
from modalign.specs import Dataset, Example, ReadsPrompts
from modalign.tokens import TokenStream

Missing = Literal["encode", "skip"]


class Cached:
    """`dataset` with its targets from `cache`, so that training needs no encoder.

    A sample that the cache lacks, or holds damaged, is given without target, for the trainer to
    encode live; or, with `missing="skip"`, its slot stays empty. Where the target is there and the
    data set can, the picture is not read.
    """

    def __init__(
        self, dataset: Dataset, cache: TokenCache | str | Path, *, missing: Missing = "encode"
    ) -> None:
        if missing not in ("encode", "skip"):
            raise ModalignError(f"missing is {missing!r}; use 'encode' or 'skip'")
        self.dataset = dataset
        self.cache = cache if isinstance(cache, TokenCache) else TokenCache.open(cache)
        self.missing = missing
        self.cache.require_samples(dataset)

    def example(self, index: int, epoch: int = 0) -> Example:
        """Sample `index` with its picture, as the data set gives it."""
        return self.dataset.example(index, epoch)

    def sample(self, index: int, epoch: int = 0) -> tuple[Example, TokenStream | None]:
        """The example, and its stream {name: (1, K, D)} in float32 if the cache has it.

        Raises:
            SampleError: the sample is bad, or has no target and `missing` is "skip".
            ModalignError: the cache was made from other data.
        """
        target = self.cache.read(index)
        if target is None:
            if self.missing == "skip":
                raise SampleError(f"{self.cache.path.name}[{index}]", "the cache has no tokens")
            return self.dataset.example(index, epoch), None
        if isinstance(self.dataset, ReadsPrompts):
            example = self.dataset.prompt_only(index, epoch)
        else:
            example = self.dataset.example(index, epoch)
        self.cache.require_identity(index, example.identifier)
        return example, target
