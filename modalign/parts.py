"""The frozen parts around a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from modalign.errors import BuildError, WeightsError
from modalign.pairing import Pair
from modalign.specs import Asset, Generator, Objective, TargetEncoder, VLMAdapter
from modalign.tokens import TokenStream

if TYPE_CHECKING:
    from PIL.Image import Image


class Parts:
    """The frozen parts around a head, each built when it is first used.

    `connect` carries the head's space to the generator's. `devices` says where "vlm", "encoder",
    "head" and "generator" live. `about` is what a saved pipeline says of its parts.
    """

    def __init__(
        self,
        builders: Mapping[str, Callable[[], Any]],
        *,
        objective: Objective,
        devices: Mapping[str, torch.device],
        about: Mapping[str, Any] | None = None,
        modality: str = "image",
        crop: Callable[[Image], Image] | None = None,
        random: bool = False,
    ) -> None:
        """`builders` of "vlm", "encoder", "connect", "decoder", and of "generator" if any.

        `random`: their weights are, and mean nothing to anybody else.
        """
        self._builders = builders
        self._built: dict[str, Any] = {}
        self.objective = objective
        self.devices = devices
        self.about = about or {}
        self.modality = modality
        self._crop = crop
        self.random = random

    @property
    def vlm(self) -> VLMAdapter:
        """The vision-language model."""
        vlm: VLMAdapter = self._get("vlm")
        return vlm

    @property
    def encoder(self) -> TargetEncoder:
        """The target encoder; generating needs none.

        Raises:
            WeightsError: its weights are not those that the head was trained on.
        """
        encoder: TargetEncoder = self._get("encoder")
        return encoder

    @property
    def has_generator(self) -> bool:
        """Whether the recipe names one; it need not be built yet."""
        return "generator" in self._builders

    @property
    def generator(self) -> Generator | None:
        """The generator, if the recipe names one."""
        return self._get("generator") if self.has_generator else None

    @property
    def pair(self) -> Pair:
        """The encoder and the generator, without what lies between them.

        Raises:
            BuildError: the recipe has no generator.
            WeightsError: weights are missing, or not those that the head was trained on.
        """
        if self.generator is None:
            raise BuildError("this recipe has no generator")
        return Pair(self.encoder, self.connect, self.generator, self._crop)

    def connect(self, stream: TokenStream) -> TokenStream:
        """A stream of the head's space in the generator's, on the generator's device."""
        moved = {name: tokens.to(self.devices["generator"]) for name, tokens in stream.items()}
        connected: TokenStream = self._get("connect")(moved)
        return connected

    def decode(self, stream: TokenStream) -> list[Asset]:
        """One picture per element of a stream in the head's space.

        Raises:
            BuildError: nothing that is installed decodes this space.
        """
        moved = {name: tokens.to(self.devices["generator"]) for name, tokens in stream.items()}
        pictures: list[Asset] = self._get("decoder")(moved)
        return pictures

    def build(self, *kinds: str) -> None:
        """Build these parts now, those of them that the recipe has.

        Raises:
            WeightsError: lists what every part misses, not only the first.
        """
        missing: list[str] = []
        for kind in kinds:
            if kind in self._builders:
                try:
                    self._get(kind)
                except WeightsError as error:
                    missing.append(str(error))
        if missing:
            raise WeightsError("; ".join(missing))

    def release(self, *kinds: str) -> None:
        """Forget parts, so that their memory is free; used again, they are built again."""
        for kind in kinds:
            self._built.pop(kind, None)

    def _get(self, kind: str) -> Any:
        if kind not in self._built:
            self._built[kind] = self._builders[kind]()
        return self._built[kind]
