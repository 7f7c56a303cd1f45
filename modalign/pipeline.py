"""A pipeline: the parts of one recipe, assembled; prompts go in, streams or assets come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from modalign.errors import BuildError, GenerationError, PromptError
from modalign.models.reading import layer_pooling
from modalign.recipe import ReadingConfig, Recipe, SamplerConfig
from modalign.sampling import sample
from modalign.spaces import project
from modalign.specs import (
    Asset,
    Example,
    Generator,
    Head,
    Objective,
    Progress,
    ProgressCallback,
    Prompt,
    ReadsLayers,
    TargetEncoder,
    VLMAdapter,
    VLMOutput,
)
from modalign.tokens import TokenStream, TokenStreamSpec

Batch = Mapping[str, Any]
Prompts = str | Prompt | Sequence[str | Prompt]


@dataclass(frozen=True)
class Parts:
    """The frozen parts around a head; `connect` carries the head's space to the generator's.

    The encoder is built on first use: generating needs none. So is the decoder, which shows
    streams of the head's space as pictures.
    """

    vlm: VLMAdapter
    build_encoder: Callable[[], TargetEncoder]
    objective: Objective
    generator: Generator | None
    connect: Callable[[TokenStream], TokenStream]
    build_decoder: Callable[[], Callable[[TokenStream], list[Asset]]]

    @cached_property
    def encoder(self) -> TargetEncoder:
        """The target encoder."""
        return self.build_encoder()

    @cached_property
    def decoder(self) -> Callable[[TokenStream], list[Asset]]:
        """One picture per element of a stream in the head's space.

        Raises:
            BuildError: nothing that is installed decodes this space.
        """
        return self.build_decoder()


class Pipeline(nn.Module):
    """One recipe at work. `modalign.build` makes it; only `trainable()` is ever trained."""

    def __init__(
        self,
        recipe: Recipe,
        stream: TokenStreamSpec,
        parts: Parts,
        head: nn.Module,
        soft_tokens: nn.Parameter,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.stream = stream
        self.parts = parts
        self.head = head
        self.soft_tokens = soft_tokens  # (1, S, C)
        self.layer_pooling = layer_pooling(recipe.reading)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Every trained tensor by name: the optimiser, EMA and checkpoints all use this."""
        return dict(self.named_parameters())

    def collate(self, examples: Sequence[Example]) -> Batch:
        """A batch on the CPU from training pairs. Pure and picklable: workers may run it."""
        images = [example.image for example in examples if example.image is not None]
        if len(images) != len(examples):
            raise ValueError("every training example needs the image that the encoder reads")
        return {
            "prompt": self.parts.vlm.prepare([example.prompt for example in examples]),
            "image": self.parts.encoder.prepare(images),
        }

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Losses of one batch by name; "loss" is the one to minimise.

        A batch may carry "target", a stream that was encoded earlier, instead of "image". It may
        hold several targets per prompt, those of the first prompt first: each gets its own time
        and noise, while the VLM reads a prompt once.
        """
        if "target" in batch:
            target = {name: tokens.to(self.device) for name, tokens in batch["target"].items()}
        else:
            target = self.parts.encoder.encode(batch["image"])
        self.stream.check(target)
        output = self._read(batch["prompt"])
        prompts, targets = len(output.hidden), len(target[self.stream.names[0]])
        if targets % prompts:
            raise ValueError(
                f"{targets} targets cannot be shared by {prompts} prompts; give every prompt "
                "equally many"
            )
        hidden = output.hidden.repeat_interleave(targets // prompts, dim=0)
        head: Head = self.head
        if output.mask is not None:
            mask = output.mask.repeat_interleave(targets // prompts, dim=0)
            head = partial(self.head, condition_mask=mask)
        return self.parts.objective(
            head, hidden, target, lm_loss=output.lm_loss, generator=generator
        )

    @property
    def device(self) -> torch.device:
        """Where the head and the soft tokens live."""
        return self.soft_tokens.device

    @torch.no_grad()
    def condition(self, prompts: Prompts) -> VLMOutput:
        """What the head is conditioned on: hidden states (B, S, C) where the recipe reads them.

        With the prompt's own states these come first, and `mask` says which positions are real.

        Raises:
            PromptError: there is no prompt, or one that the VLM cannot read.
            GenerationError: the VLM returned numbers that are not finite.
        """
        asked = as_prompts(prompts)
        output = self._read(self.parts.vlm.prepare(asked))
        require_finite("vision-language model", {"hidden": output.hidden})
        return output

    @torch.no_grad()
    def align(
        self,
        prompts: Prompts,
        *,
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        progress: ProgressCallback | None = None,
    ) -> TokenStream:
        """The encoder's stream for each prompt, in the head's space, {name: (B, K, D)}.

        Element k starts from noise of seed `seed + k`, whatever else is in the batch.
        `num_inference_steps` and `guidance_scale` (1 is off) default to the recipe's.
        """
        asked = as_prompts(prompts)
        sampler = self._sampler(num_inference_steps, guidance_scale)
        report = _reporter(progress, "soft tokens", 1)
        condition = self.condition(asked)
        report(1)
        report = _reporter(progress, "alignment", sampler.steps)
        stream: TokenStream = sample(
            self.head,
            self.stream,
            condition.hidden,
            flow=self.recipe.flow,
            sampler=sampler,
            generators=[torch.Generator().manual_seed(seed + k) for k in range(len(asked))],
            progress=report,
            mask=condition.mask,
        )
        require_finite("alignment", stream)
        return project(self.stream, stream) if sampler.project else stream

    @torch.no_grad()
    def generate(
        self,
        prompt: str | Prompt,
        *,
        seed: int = 0,
        num_samples: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> list[Asset]:
        """`num_samples` assets for one prompt; `options` go to the generator.

        Sample k depends on `seed + k` only.

        Raises:
            BuildError: the recipe has no generator.
            GenerationError: a stage produced nothing usable; the message names it.
        """
        if self.parts.generator is None:
            raise BuildError(f"recipe {self.recipe.name!r} has no generator; use align()")
        stream = self.align(
            [prompt] * num_samples,
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            progress=progress,
        )
        return self.parts.generator.generate(
            self.parts.connect(stream), seed=seed, progress=progress, **options
        )

    @torch.no_grad()
    def preview(self, stream: TokenStream) -> list[Asset]:
        """One picture per element of a stream in the head's space: what its tokens look like.

        Any stream of the space will do: sampled by `align`, or encoded from a real picture, which
        shows how much of a preview is the decoder's own doing.

        Raises:
            ValueError: the stream has another layout.
            BuildError: nothing that is installed decodes this space, or a library is missing.
            WeightsError: the decoder's weights are not here.
        """
        self.stream.check(stream)
        return self.parts.decoder(stream)

    def _read(self, prompts: Mapping[str, Tensor]) -> VLMOutput:
        """The states that the recipe's `reading` asks for, pooled over layers to (B, S, C)."""
        reading, vlm = self.recipe.reading, self.parts.vlm
        if reading == ReadingConfig():
            return vlm.read(prompts, self.soft_tokens)
        assert isinstance(vlm, ReadsLayers)  # `build` has refused others
        layers = (vlm.num_layers,) if reading.layers == "last" else reading.layers
        output = vlm.read_layers(
            prompts, self.soft_tokens, layers=layers, prompt_states=reading.prompt_states
        )
        return replace(output, hidden=self.layer_pooling(output.hidden))

    def _sampler(self, steps: int | None, guidance: float | None) -> SamplerConfig:
        changes = {"steps": steps, "guidance": guidance}
        return SamplerConfig.model_validate(
            self.recipe.sampler.model_dump()
            | {name: value for name, value in changes.items() if value is not None}
        )


def as_prompts(prompts: Prompts) -> list[Prompt]:
    """One or several prompts as a list.

    Raises:
        PromptError: there is none, or one is empty.
    """
    several = [prompts] if isinstance(prompts, (str, Prompt)) else prompts
    asked = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in several]
    if not asked:
        raise PromptError("no prompt was given")
    if not all(prompt.text.strip() for prompt in asked):
        raise PromptError("the prompt is empty; describe what to make")
    return asked


def require_finite(stage: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse numbers that are not finite.

    Raises:
        GenerationError: names the stage and the tensor.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise GenerationError(f"stage {stage!r} produced non-finite numbers in {name!r}")


def _reporter(progress: ProgressCallback | None, stage: str, total: int) -> Callable[[int], None]:
    def report(step: int) -> None:
        if progress is not None:
            progress(Progress(stage, step, total))

    return report
