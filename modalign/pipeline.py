"""A pipeline: the parts of one recipe, assembled; prompts go in, streams or assets come out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from modalign.assets import write_whole
from modalign.card import model_card
from modalign.checkpoint import WEIGHTS_NAME, save_checkpoint
from modalign.errors import BuildError, GenerationError, OutputError, PromptError, WeightsError
from modalign.fingerprint import fingerprint
from modalign.hub import upload
from modalign.models.reading import layer_pooling
from modalign.parts import Parts
from modalign.recipe import ReadingConfig, Recipe, SamplerConfig
from modalign.sampling import Start, sample
from modalign.sampling.schedule import noise_levels
from modalign.specs import (
    Asset,
    Example,
    Head,
    Progress,
    ProgressCallback,
    Prompt,
    ReadsLayers,
    VLMOutput,
)
from modalign.tokens import TokenStream, TokenStreamSpec

Batch = Mapping[str, Any]
Prompts = str | Prompt | Sequence[str | Prompt]


class Pipeline(nn.Module):
    """One recipe at work. `modalign.build` makes it; only `trainable()` is ever trained."""

    def __init__(
        self,
        recipe: Recipe,
        stream: TokenStreamSpec,
        parts: Parts,
        head: nn.Module,
        soft_tokens: nn.Parameter,
        *,
        load_head: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        """`load_head` reads the head's tensors: it then lies on the meta device between uses, and
        each part is freed after its stage.
        """
        super().__init__()
        self.recipe = recipe
        self.stream = stream
        self.parts = parts
        self.head = head
        self.soft_tokens = soft_tokens  # (1, S, C)
        self.layer_pooling = layer_pooling(recipe.reading)
        self._load_head = load_head
        self.extra: dict[str, Any] = {}  # what the loaded checkpoint says besides its recipe
        self.frozen_tensors: dict[str, Tensor] = {}  # "frozen....": of no trained part

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

    def forward(
        self, batch: Batch, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> dict[str, Tensor]:
        """Losses of one batch by name; "loss" is the one to minimise.

        A batch may carry "target", a stream that was encoded earlier, instead of "image", or beside
        it: those of "target" then come first. It may hold several targets per prompt, those of the
        first prompt first: each gets its own time and noise, while the VLM reads a prompt once.
        `generator` may be one per target.
        """
        streams = [batch["target"]] if "target" in batch else []
        if "image" in batch:
            streams.append(self.parts.encoder.encode(batch["image"]))
        target = {
            name: torch.cat([stream[name].to(self.device) for stream in streams])
            for name in self.stream.names
        }
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
        if self._load_head is not None:
            self.parts.release("vlm")
        return output

    @torch.no_grad()
    def align(
        self,
        prompts: Prompts,
        *,
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        start: TokenStream | None = None,
        strength: float = 1.0,
        keep: Mapping[str, Tensor] | None = None,
        progress: ProgressCallback | None = None,
    ) -> TokenStream:
        """The encoder's stream for each prompt, in the head's space, {name: (B, K, D)}.

        Element k starts from noise of seed `seed + k`, whatever else is in the batch.
        `num_inference_steps` and `guidance_scale` (1 is off) default to the recipe's.

        Args:
            prompts: what to describe.
            seed: of the first element.
            num_inference_steps: steps from noise to data.
            guidance_scale: of the condition.
            start: a stream of the head's space to edit, such as a picture's; of one element for
                all prompts, or of one for each.
            strength: how much of the steps is sampled; 0 is `start`, 1 starts from noise.
            keep: tokens of `start` that stay exactly, bool (K,) or (B, K) by group.
            progress: called after every step.

        Raises:
            PromptError: there is no prompt, or one that the VLM cannot read.
            ValueError: `start`, `strength` or `keep` does not fit.
            GenerationError: numbers are not finite; the message names the stage.
        """
        asked = as_prompts(prompts)
        sampler = self._sampler(num_inference_steps, guidance_scale)
        begin = None
        if start is not None:
            begin = Start(start, strength, keep or {}).for_batch(len(asked), self.stream)
        elif strength != 1 or keep is not None:
            raise ValueError("strength and keep need a stream to start from; give start=...")
        report = _reporter(progress, "soft tokens", 1)
        condition = self.condition(asked)
        report(1)
        levels = noise_levels(sampler.steps, strength=strength)
        report = _reporter(progress, "alignment", len(levels) - 1)
        with self._head_loaded():
            stream: TokenStream = sample(
                self.head,
                self.stream,
                condition.hidden,
                flow=self.recipe.flow,
                sampler=sampler,
                generators=[torch.Generator().manual_seed(seed + k) for k in range(len(asked))],
                progress=report,
                mask=condition.mask,
                start=begin,
            )
        require_finite("alignment", stream)
        stream = self.stream.project(stream) if sampler.project else stream
        return stream if begin is None else begin.settled(stream)

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
        if not self.parts.has_generator:
            raise BuildError(f"recipe {self.recipe.name!r} has no generator; use align()")
        stream = self.align(
            [prompt] * num_samples,
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            progress=progress,
        )
        connected, generator = self.parts.connect(stream), self.parts.generator
        assert generator is not None  # asked above
        assets = generator.generate(connected, seed=seed, progress=progress, **options)
        if self._load_head is not None:
            self.parts.release("generator", "connect")
        return assets

    @torch.no_grad()
    def generate_from(
        self,
        samples: Any,
        *,
        seed: int = 0,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> list[Asset]:
        """Assets of real pictures, or of what else the encoder reads: the head has no part in it.

        What the generator makes of the encoder's own tokens is the best that a prompt can reach.
        `options` go to the generator. Without a recipe: `modalign.pair`.

        Raises:
            BuildError: the recipe has no generator.
            PromptError: there is no sample, or a picture that cannot be used.
            GenerationError: a stage produced nothing usable; the message names it.
        """
        assets = self.parts.pair.generate(samples, seed=seed, progress=progress, **options)
        if self._load_head is not None:
            self.parts.release("encoder", "generator", "connect")
        return assets

    def save(
        self,
        path: str | PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        **extra: Any,
    ) -> None:
        """Write one self-contained file: what is trained, and all that describes it.

        Trained tensors are stored in `dtype`, or as they are if None. `tensors`, such as an
        average of them, take the place of `trainable()`.

        The header holds the recipe, the stream's layout, sources and licences of all parts, the
        prompt's template, preprocessing, null condition, and a fingerprint of the encoder, by which
        other weights of it are refused later. `extra` is any JSON content, such as `training` or
        `statistics`; what was loaded is kept. Without the encoder's weights on this machine the
        file has no fingerprint.

        Raises:
            OutputError: the file cannot be written.
        """
        about = {**self.extra, **self.parts.about, **extra}
        if "fingerprint" not in self.extra and not self.parts.random:
            with suppress(WeightsError):
                about["fingerprint"] = fingerprint(self.parts.encoder, self.parts.modality)
        with self._head_loaded():
            trained = {
                name: tensor.detach().to(dtype or tensor.dtype)
                for name, tensor in (tensors or self.trainable()).items()
            }
            save_checkpoint(
                path, {**trained, **self.frozen_tensors}, self.recipe, self.stream, about
            )
        self.extra = about

    def save_pretrained(
        self, folder: str | PathLike[str], *, dtype: torch.dtype | None = None, **extra: Any
    ) -> None:
        """Write `model.safetensors` (see `save`), `config.json` and a model card into `folder`.

        A card that is there already is kept: somebody may have written it.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = Path(folder)
        self.save(folder / WEIGHTS_NAME, dtype=dtype, **extra)
        card = folder / "README.md"
        count = sum(parameter.numel() for parameter in self.trainable().values())
        config = {"library_name": "modalign", "recipe": self.recipe.model_dump(mode="json")}
        try:
            write_whole(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())
            if not card.exists():
                page = model_card(self.recipe, self.stream, self.extra, count)
                write_whole(card, page.encode())
        except OSError as error:
            raise OutputError(f"cannot write into {folder}: {error.strerror or error}") from error

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "Upload with modalign",
        dtype: torch.dtype | None = None,
        **extra: Any,
    ) -> str:
        """Save into a repository on the Hub, made if need be; returns the commit's address.

        Raises:
            OutputError: the Hub cannot be reached, or refuses.
        """
        with TemporaryDirectory() as aside:
            self.save_pretrained(aside, dtype=dtype, **extra)
            return upload(
                Path(aside), repo_id, private=private, token=token, message=commit_message
            )

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], **options: Any) -> Pipeline:
        """The pipeline saved in a file, a folder or a repository: `modalign.from_pretrained`."""
        import modalign

        return modalign.from_pretrained(source, **options)

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
        return self.parts.decode(stream)

    @contextmanager
    def _head_loaded(self) -> Iterator[None]:
        """The head with its weights; they go again if they were loaded for this."""
        if self._load_head is None:
            yield
            return
        self.head.load_state_dict(self._load_head(), assign=True)
        try:
            yield
        finally:
            self.head.to("meta")

    def _read(self, prompts: Mapping[str, Tensor]) -> VLMOutput:
        """The states that the recipe's `reading` asks for, pooled over layers to (B, S, C)."""
        reading, vlm = self.recipe.reading, self.parts.vlm
        soft_tokens = self.soft_tokens.to(self.parts.devices["vlm"])
        if reading == ReadingConfig():
            return _on(self.device, vlm.read(prompts, soft_tokens))
        assert isinstance(vlm, ReadsLayers)  # `build` has refused others
        layers = (vlm.num_layers,) if reading.layers == "last" else reading.layers
        output = vlm.read_layers(
            prompts, soft_tokens, layers=layers, prompt_states=reading.prompt_states
        )
        output = _on(self.device, output)
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


def _on(device: torch.device, output: VLMOutput) -> VLMOutput:
    """`output` on `device`; its numbers stay in the VLM's dtype."""
    moved = {name: tensor.to(device) for name, tensor in vars(output).items() if tensor is not None}
    return replace(output, **moved)


def _reporter(progress: ProgressCallback | None, stage: str, total: int) -> Callable[[int], None]:
    def report(step: int) -> None:
        if progress is not None:
            progress(Progress(stage, step, total))

    return report
