"""SigLIP and SigLIP2 vision towers as target encoders: patches after the model's own norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from modalign_plugins.pictures import normalised, squashed_square
from modalign_plugins.weights import sources
from torch import Tensor

from modalign import EncoderSpec, TokenGroup, TokenStream, TokenStreamSpec, hookimpl

if TYPE_CHECKING:
    from PIL.Image import Image

Resampling = Literal["bicubic", "bilinear"]

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
TOWER = "vision_model."

# Source: config.json of the repositories below.
SO400M_384: dict[str, Any] = {
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 384,
}
BASE_224: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "patch_size": 16,
    "image_size": 224,
}


def stream_of(name: str, sizes: Mapping[str, Any]) -> TokenStreamSpec:
    """The stream of a tower of these `sizes`: patches row-major, there is no class token."""
    side = sizes["image_size"] // sizes["patch_size"]  # what is left over at the edge is not seen
    return TokenStreamSpec(
        space=f"{name}/affine-layernorm@{sizes['image_size']}",
        groups=(TokenGroup(name="patches", shape=(side, side), dim=sizes["hidden_size"]),),
    )


class SiglipEncoder:
    """A SigLIP tower up to its final norm, gain and bias included: `last_hidden_state`.

    The pooling head behind it is left out. Fixed-resolution SigLIP2 is the same network as SigLIP,
    trained otherwise: equal shapes, another space.
    """

    def __init__(
        self,
        sizes: Mapping[str, Any],
        stream: TokenStreamSpec,
        resampling: Resampling,
        *,
        tensors: Mapping[str, Tensor] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`sizes` are fields of transformers' config; `tensors` None draws random weights.

        `tensors` carry the names of transformers' files, of both towers or of this one.

        Raises:
            WeightsError: `tensors` do not fit `sizes`.
        """
        from transformers import SiglipVisionConfig, SiglipVisionModel

        self.stream = stream
        self.image_size: int = sizes["image_size"]
        self.resampling = resampling
        self.device = torch.device(device)
        self.dtype = dtype
        if tensors is not None:
            tensors = {name.removeprefix(TOWER): tensor for name, tensor in tensors.items()}
        self.model = sources.load_frozen(
            SiglipVisionModel,
            SiglipVisionConfig(**sizes, vision_use_head=False),
            tensors,
            owner=stream.space,
            device=device,
            dtype=dtype,
        )

    def prepare(self, images: Sequence[Image]) -> Tensor:
        """Pixels (B, 3, H, W): the whole picture squashed to a square (PIL), scaled to -1..1."""
        squares = [squashed_square(image, self.image_size, self.resampling) for image in images]
        return torch.stack([torch.from_numpy(normalised(square, MEAN, STD)) for square in squares])

    @torch.no_grad()
    def encode(self, batch: Tensor) -> TokenStream:
        """The stream of prepared pixels (B, 3, H, W), on the encoder's device and in its dtype."""
        pixels = batch.to(self.device, self.dtype)
        return self.stream.split(self.model(pixels).last_hidden_state)


def _in_tower(name: str) -> bool:
    """Whether a tensor of a file belongs here; text towers and pooling heads are not read."""
    bare = name.removeprefix(TOWER)
    return bare.startswith(("embeddings.patch", "embeddings.pos", "encoder.", "post_layernorm."))


def _build(
    name: str,
    sizes: Mapping[str, Any],
    stream: TokenStreamSpec,
    resampling: Resampling,
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SiglipEncoder:
    tensors = None
    if weights != "random":
        path = Path(weights)
        if weights == "pretrained":
            path = sources.downloaded(name, f"google/{name}", [sources.SHARDS])
        tensors = sources.read_tensors(path, name, _in_tower)
    return SiglipEncoder(sizes, stream, resampling, tensors=tensors, device=device, dtype=dtype)


def _spec(
    name: str, sizes: Mapping[str, Any], resampling: Resampling, summary: str, paper: str
) -> EncoderSpec:
    stream = stream_of(name, sizes)
    return EncoderSpec(
        name=name,
        summary=summary,
        build=partial(_build, name, sizes, stream, resampling),
        stream=stream,
        requires=("transformers",),
        preprocessing=f"{sizes['image_size']} px: squashed to a square {resampling} (PIL), "
        "mean and std 0.5",
        source=f"google/{name} ({paper})",
        license="Apache-2.0",
    )


@hookimpl
def modalign_encoders() -> list[EncoderSpec]:
    """SigLIP as Flux Redux reads it, and two of its successors.

    The published preprocessors resize bicubic for SigLIP, and bilinear for SigLIP2.
    """
    return [
        _spec(
            "siglip-so400m-patch14-384",
            SO400M_384,
            "bicubic",
            "SigLIP So400m/14 at 384 px: what Flux Redux reads",
            "arXiv:2303.15343",
        ),
        _spec(
            "siglip2-so400m-patch14-384",
            SO400M_384,
            "bilinear",
            "SigLIP2 So400m/14 at 384 px",
            "arXiv:2502.14786",
        ),
        _spec(
            "siglip2-base-patch16-224",
            BASE_224,
            "bilinear",
            "SigLIP2 B/16 at 224 px",
            "arXiv:2502.14786",
        ),
    ]
