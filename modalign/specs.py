"""What plugins provide: prompts in, streams between, assets out, and a record for each part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from modalign.recipe import Recipe
from modalign.tokens import TokenStream, TokenStreamSpec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """What a user asks for: a text, and any number of RGB pictures it refers to."""

    text: str
    images: tuple[Image, ...] = ()


@dataclass(frozen=True)
class Example:
    """One training pair: a prompt and the picture, or points, that the target encoder reads.

    Points are (P, 6): coordinates within -1..1, then colours within 0..1. `answer` is text for a
    language-model loss, where an objective has one; `identifier` names the sample in logs and
    seeds.
    """

    prompt: Prompt
    image: Image | NDArray[np.float32] | None = None
    answer: str | None = None
    identifier: str = ""


@dataclass(frozen=True)
class VLMOutput:
    """Hidden states at the positions a recipe reads, (B, S, C), and a language loss if asked.

    `mask` (B, S) is 1 at real positions; None if all are.
    """

    hidden: Tensor
    lm_loss: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Progress:
    """A stage's progress: `step` of `total` done in `stage`."""

    stage: str
    step: int
    total: int


ProgressCallback = Callable[[Progress], None]


@runtime_checkable
class Asset(Protocol):
    """What a generator makes. Saved whole or not at all."""

    def save(self, path: str | PathLike[str]) -> None:
        """Write to `path`; its extension chooses the format."""
        ...

    def preview(self, path: str | PathLike[str]) -> None:
        """Write a PNG to look at."""
        ...


class TargetEncoder(Protocol):
    """A frozen encoder whose tokens are the target."""

    stream: TokenStreamSpec

    def prepare(self, images: Sequence[Any]) -> Tensor:
        """A batch on the CPU, picklable, from RGB pictures. Pure; no model is touched.

        An encoder whose spec says "points" gets arrays (P, 6) instead, each with its own P; one
        of "text" gets strings.
        """
        ...

    def encode(self, batch: Tensor) -> TokenStream:
        """The target stream, computed without gradient on the encoder's device."""
        ...


class VLMAdapter(Protocol):
    """A frozen vision-language model that soft tokens read from."""

    hidden_dim: int

    def prepare(
        self, prompts: Sequence[Prompt], answers: Sequence[str | None] | None = None
    ) -> Mapping[str, Tensor]:
        """A batch of token ids, masks and pixels on the CPU; pure and picklable."""
        ...

    def read(self, batch: Mapping[str, Tensor], soft_tokens: Tensor) -> VLMOutput:
        """Hidden states (B, S, C) at the soft tokens (1, S, C) appended to each prompt."""
        ...


@runtime_checkable
class ReadsLayers(Protocol):
    """A `VLMAdapter` that also gives other layers, and the prompt's own states.

    Layers are numbered 0 (what enters the first) to `num_layers` (the last, after the final norm).
    """

    num_layers: int

    def read_layers(
        self,
        batch: Mapping[str, Tensor],
        soft_tokens: Tensor,
        *,
        layers: Sequence[int],
        prompt_states: bool = False,
    ) -> VLMOutput:
        """Hidden states (B, L, S, C) of `layers`; with the prompt's (B, L, P + S, C), and a mask.

        The prompt's states, zero at padding, come first and carry no gradient.
        """
        ...


class Generator(Protocol):
    """A frozen generator that consumes a token stream."""

    accepts: TokenStreamSpec

    def generate(
        self,
        stream: TokenStream,
        *,
        seed: int,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> list[Asset]:
        """One asset per batch element; element k draws its noise, if any, from `seed + k`."""
        ...


Head = Callable[..., TokenStream]
"""Called as `head(x_t, t, condition)`: stream, times (B,), condition (B, S, C).

Where rows of the condition differ in length, the mask (B, S) of real positions comes fourth.
"""


class Objective(Protocol):
    """What trains the head and the soft tokens."""

    def __call__(
        self,
        head: Head,
        condition: Tensor,
        target: TokenStream,
        *,
        lm_loss: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> dict[str, Tensor]:
        """Scalar losses by name; the one called "loss" is minimised.

        With one generator per element, what is drawn for it depends on its own alone.
        """
        ...


class Dataset(Protocol):
    """Training pairs addressed by index, so that order and resume are exact.

    One with an end also has `__len__`; one without takes any index from 0 on.
    """

    def example(self, index: int, epoch: int = 0) -> Example:
        """Sample `index`, the same on every machine.

        `epoch` counts the passes over the data: it may choose among several captions, never
        another picture.

        Raises:
            SampleError: this one cannot be used; the others can.
        """
        ...


@runtime_checkable
class Sharded(Protocol):
    """A `Dataset` with an end whose indices lie in runs that are cheap to read together."""

    @property
    def shard_sizes(self) -> Sequence[int]:
        """Samples of each run, in the order of indices; together all samples."""
        ...


@runtime_checkable
class ReadsPrompts(Protocol):
    """A `Dataset` that can leave the picture unread, for targets that were encoded earlier."""

    def prompt_only(self, index: int, epoch: int = 0) -> Example:
        """As `example`, without its image."""
        ...


@runtime_checkable
class ReportsProblems(Protocol):
    """A `Dataset` that knows what is wrong with its files as such, beside single samples."""

    @property
    def problems(self) -> Sequence[str]:
        """A line each, with the file's name."""
        ...


@dataclass(frozen=True, kw_only=True)
class PluginSpec:
    """What every catalogue entry states: a name, where it comes from, what it needs.

    `requires` lists importable modules; `source` says where weights come from, `license` theirs.
    """

    name: str
    summary: str = ""
    requires: tuple[str, ...] = ()
    source: str = ""
    license: str = ""


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(PluginSpec):
    """`build(weights=, device=, dtype=)` returns a `TargetEncoder` that yields `stream`.

    `preprocessing` says in words what `prepare` does; `modality` what it takes: "image" (RGB
    pictures), "points" (arrays (P, 6) of coordinates within -1..1 and colours within 0..1) or
    "text" (strings).
    """

    build: Callable[..., TargetEncoder]
    stream: TokenStreamSpec
    modality: str = "image"
    preprocessing: str = ""


@dataclass(frozen=True, kw_only=True)
class VLMSpec(PluginSpec):
    """`build(weights=, device=, dtype=, **options)` returns a `VLMAdapter`.

    `options` are the recipe's `vlm_options`. An adapter of any model a user names knows its
    numbers only when it is built: `hidden_dim` and `max_positions` are then None here, and both
    attributes of the adapter. `template` is what is read for a text, with {prompt} in its place.
    """

    build: Callable[..., VLMAdapter]
    hidden_dim: int | None
    max_positions: int | None
    accepts_images: bool = True
    template: str = ""


@dataclass(frozen=True, kw_only=True)
class GeneratorSpec(PluginSpec):
    """`build(weights=, device=, dtype=)` returns a `Generator` that consumes `accepts`.

    `produces` is a kind of `modalign.assets.FORMATS`, such as "mesh" or "picture"; where
    `generate(format=)` chooses among several, `formats` names them all. `decodes` says that it
    draws no noise: what it makes follows from the tokens, a seed changes nothing, and
    `Pipeline.preview` may show tokens by it. In words: `null_condition` is what its guidance
    contrasts the stream with, `image_domain` the pictures it was trained on. `crop` brings any
    picture there, before the encoder reads it; it raises `PromptError` where it cannot.
    """

    build: Callable[..., Generator]
    accepts: TokenStreamSpec
    produces: str = "mesh"
    formats: tuple[str, ...] = ()
    decodes: bool = False
    null_condition: str = ""
    image_domain: str = ""
    crop: Callable[[Image], Image] | None = None


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec(PluginSpec):
    """`build(recipe, stream, **options)` returns an `Objective` for heads of kind `head`."""

    build: Callable[..., Objective]
    head: str


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(PluginSpec):
    """`build(**options)` returns a `Dataset`."""

    build: Callable[..., Dataset]


@dataclass(frozen=True, kw_only=True)
class SuiteSpec(PluginSpec):
    """`run(recipe, output, limit=None, progress=None, weights=None)` measures a recipe: Markdown.

    It writes `report.json` and `report.md` into the folder `output`, and keeps there what it needs
    to continue after it was stopped. `limit` is a number of samples below the suite's own;
    `weights` are checkpoints by name of recipe, instead of those that ship.
    """

    run: Callable[..., str]


StreamMap = Callable[[TokenStream], TokenStream]


@dataclass(frozen=True, kw_only=True)
class SpaceMap(PluginSpec):
    """A map between two spaces whose streams say the same in other numbers.

    `build(weights=, device=, dtype=)` returns (forward, inverse); `inverse(forward(stream))` is
    `stream`. A map that loses something, such as pooling, has None as inverse and states
    `one_way`: it then joins spaces in that direction alone.
    """

    source_stream: TokenStreamSpec
    target_stream: TokenStreamSpec
    build: Callable[..., tuple[StreamMap, StreamMap | None]]
    one_way: bool = False


@dataclass(frozen=True)
class Catalogue:
    """Everything installed, by kind and name."""

    encoders: Mapping[str, EncoderSpec] = field(default_factory=dict)
    vlms: Mapping[str, VLMSpec] = field(default_factory=dict)
    generators: Mapping[str, GeneratorSpec] = field(default_factory=dict)
    objectives: Mapping[str, ObjectiveSpec] = field(default_factory=dict)
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    datasets: Mapping[str, DatasetSpec] = field(default_factory=dict)
    suites: Mapping[str, SuiteSpec] = field(default_factory=dict)
    space_maps: Mapping[str, SpaceMap] = field(default_factory=dict)
