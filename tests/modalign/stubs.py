"""Tiny parts of every kind, so that assembly and the command are tested without weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalign import (
    DiTConfig,
    EncoderSpec,
    GeneratorSpec,
    Mesh,
    Picture,
    Progress,
    PromptError,
    Recipe,
    Ref,
    Registry,
    TokenGroup,
    TokenStreamSpec,
    VLMOutput,
    VLMSpec,
    build,
    hookimpl,
)
from modalign.checkpoint import save_checkpoint
from modalign.objectives import flow_matching

STREAM = TokenStreamSpec(
    space="stub/layernorm@28",
    groups=(
        TokenGroup(name="cls", shape=(1,), dim=4),
        TokenGroup(name="patches", shape=(2, 3), dim=4),
    ),
)
RECIPE = Recipe(
    name="stub",
    vlm="stub-vlm",
    encoder="stub-encoder",
    generator="stub-generator",
    objective=Ref(name="flow-matching", options={"weights": {"cls": 0.5, "patches": 0.5}}),
    head=DiTConfig(hidden_size=16, depth=1, num_heads=2, multiple_of=8),
    sampler={"steps": 2},
    num_soft_tokens=3,
    summary="tiny parts",
)


class Encoder:
    stream = STREAM

    def prepare(self, images: list[Any]) -> Tensor:
        return torch.tensor([[float(np.asarray(image).mean())] for image in images])

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        ramp = torch.arange(STREAM.num_tokens * 4.0).view(1, -1, 4)
        return STREAM.project(STREAM.split(torch.sin(ramp * batch[:, :, None])))


class VLM:
    hidden_dim = 8

    def prepare(self, prompts: list[Any], answers: Any = None) -> dict[str, Tensor]:
        for prompt in prompts:
            if len(prompt.text) > 100:
                raise PromptError("the prompt is too long; shorten it by its end")
        return {"length": torch.tensor([float(len(prompt.text)) for prompt in prompts])}

    def read(self, batch: dict[str, Tensor], soft_tokens: Tensor) -> VLMOutput:
        return VLMOutput(soft_tokens + batch["length"].sin()[:, None, None])


class DeepVLM(VLM):
    """Layer k adds k to what enters; prompts are as long as their text, on up to 4 positions."""

    num_layers = 2

    def read(self, batch: dict[str, Tensor], soft_tokens: Tensor) -> VLMOutput:
        output = self.read_layers(batch, soft_tokens, layers=(self.num_layers,))
        return VLMOutput(output.hidden[:, 0])

    def read_layers(
        self,
        batch: dict[str, Tensor],
        soft_tokens: Tensor,
        *,
        layers: Sequence[int],
        prompt_states: bool = False,
    ) -> VLMOutput:
        hidden = VLM.read(self, batch, soft_tokens).hidden
        mask = None
        if prompt_states:
            mask = (torch.arange(4) < batch["length"][:, None]).long()
            own = mask[:, :, None] * batch["length"].cos()[:, None, None].expand(-1, 4, 8)
            hidden = torch.cat([own, hidden], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), soft_tokens.shape[1])], dim=1)
        return VLMOutput(torch.stack([hidden + layer for layer in layers], dim=1), mask=mask)


class Generator:
    accepts = STREAM

    def generate(self, stream: dict[str, Tensor], *, seed: int, progress: Any = None) -> list[Mesh]:
        made = []
        for k, tokens in enumerate(stream["cls"]):
            noise = torch.rand(1, generator=torch.Generator().manual_seed(seed + k))
            corners = np.vstack([np.zeros(3), np.eye(3)]) * float(tokens.abs().mean() + noise)
            faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
            made.append(Mesh(corners, faces, np.full((4, 3), 0.5)))
            if progress is not None:
                progress(Progress("stub", k + 1, len(stream["cls"])))
        return made


class Painter:
    """Makes pictures of the stream: one pixel per patch."""

    accepts = STREAM

    def generate(
        self, stream: dict[str, Tensor], *, seed: int, progress: Any = None
    ) -> list[Picture]:
        return [
            Picture.from_unit(tokens[:, :3].sigmoid().reshape(2, 3, 3).numpy())
            for tokens in stream["patches"]
        ]


def giving(part: Any) -> Callable[..., Any]:
    """A build function that returns `part`, whatever it is told about weights and devices."""
    return lambda **options: part


def refusing(**options: Any) -> Any:
    """A build function that must not be reached."""
    raise AssertionError("a part was built although the recipe does not fit")


def registry(
    recipe: Recipe = RECIPE, *, more: Sequence[Any] = (), **changes: dict[str, Any]
) -> Registry:
    """The stub parts, `more` plugins, and the objectives, as a registry.

    `changes` replace fields of a part: `vlm={"build": ...}`.
    """
    vlm = VLMSpec(name="stub-vlm", build=giving(VLM()), hidden_dim=8, max_positions=16)
    encoder = EncoderSpec(name="stub-encoder", build=giving(Encoder()), stream=STREAM)
    generator = GeneratorSpec(name="stub-generator", build=giving(Generator()), accepts=STREAM)

    class Plugin:
        @hookimpl
        def modalign_vlms(self) -> list[VLMSpec]:
            return [replace(vlm, **changes.get("vlm", {}))]

        @hookimpl
        def modalign_encoders(self) -> list[EncoderSpec]:
            return [replace(encoder, **changes.get("encoder", {}))]

        @hookimpl
        def modalign_generators(self) -> list[GeneratorSpec]:
            return [replace(generator, **changes.get("generator", {}))]

        @hookimpl
        def modalign_recipes(self) -> list[Recipe]:
            return [recipe]

    others = [(type(plugin).__name__, plugin) for plugin in more]
    return Registry([("stubs", Plugin()), ("objectives", flow_matching), *others])


def checkpoint(path: Path, known: Registry | None = None, scale: float = 1.0) -> Path:
    """A checkpoint of the stub recipe at `path`, its tensors times `scale`."""
    draw = torch.Generator().manual_seed(0)
    pipeline = build("stub", weights="random", registry=known or registry())
    tensors = {
        name: 0.1 * scale * torch.randn(tensor.shape, generator=draw)
        for name, tensor in pipeline.trainable().items()
    }
    save_checkpoint(path, tensors, pipeline.recipe, pipeline.stream)
    return path
