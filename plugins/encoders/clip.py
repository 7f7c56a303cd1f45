"""CLIP vision towers as target encoders: hidden tokens, or the one vector they are pooled to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from modalign_plugins.pictures import centre_square, normalised
from modalign_plugins.weights import sources
from torch import Tensor

from modalign import EncoderSpec, TokenGroup, TokenStream, TokenStreamSpec, hookimpl

from .clip_names import TOWER, to_transformers

if TYPE_CHECKING:
    from PIL.Image import Image

Reading = Literal["hidden", "penultimate", "projected"]

# Of OpenAI's training set; LAION's networks kept them.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
WEIGHTS = "open_clip_model.safetensors"


def _sizes(
    dim: int, depth: int, heads: int, mlp_dim: int, patch: int, out: int, act: str
) -> dict[str, Any]:
    """Fields of transformers' config. Source: open_clip's model configs of the same names."""
    return {
        "hidden_size": dim,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": mlp_dim,
        "patch_size": patch,
        "projection_dim": out,
        "hidden_act": act,
        "image_size": 224,
    }


# OpenAI's weights were trained with x * sigmoid(1.702 x), LAION's with the exact GELU. With the
# other one either network runs, and makes other numbers.
SIZES = {
    "clip-vitb32": _sizes(768, 12, 12, 3072, 32, 512, "quick_gelu"),
    "clip-vitl14": _sizes(1024, 24, 16, 4096, 14, 768, "quick_gelu"),
    "clip-vith14": _sizes(1280, 32, 16, 5120, 14, 1024, "gelu"),
    "clip-vitbigg14": _sizes(1664, 48, 16, 8192, 14, 1280, "gelu"),
}
REPOSITORIES = {
    "clip-vitb32": "timm/vit_base_patch32_clip_224.openai",
    "clip-vitl14": "timm/vit_large_patch14_clip_224.openai",
    "clip-vith14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "clip-vitbigg14": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
}


def stream_of(network: str, sizes: Mapping[str, Any], reading: Reading) -> TokenStreamSpec:
    """The stream of a tower: class token and patches row-major, or one projected vector."""
    side = sizes["image_size"] // sizes["patch_size"]
    dim = sizes["projection_dim" if reading == "projected" else "hidden_size"]
    groups = [TokenGroup(name="cls", shape=(1,), dim=dim)]
    if reading != "projected":
        groups.append(TokenGroup(name="patches", shape=(side, side), dim=dim))
    return TokenStreamSpec(space=f"{network}/{reading}@{sizes['image_size']}", groups=tuple(groups))


class ClipEncoder:
    """A CLIP vision tower, read at one of three places.

    `hidden`: what the last block returns, before the final norm (transformers'
    `last_hidden_state`). `penultimate`: what the block before it returns. `projected`: the class
    token of the last block, normed and projected to the width shared with text; not of unit length.
    """

    def __init__(
        self,
        sizes: Mapping[str, Any],
        stream: TokenStreamSpec,
        reading: Reading,
        *,
        tensors: Mapping[str, Tensor] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`sizes` are fields of transformers' config; `tensors` None draws random weights.

        `tensors` may carry the names of open_clip's files or transformers'.

        Raises:
            WeightsError: `tensors` do not fit `sizes`.
        """
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        self.stream = stream
        self.reading = reading
        self.image_size: int = sizes["image_size"]
        self.device = torch.device(device)
        self.dtype = dtype
        self.model = sources.load_frozen(
            CLIPVisionModelWithProjection,
            CLIPVisionConfig(**sizes),
            None if tensors is None else to_transformers(tensors),
            owner=stream.space,
            device=device,
            dtype=dtype,
        )

    def prepare(self, images: Sequence[Image]) -> Tensor:
        """Pixels (B, 3, H, W): shorter side resized (bicubic, PIL), centre cropped, normalised."""
        squares = [centre_square(image, self.image_size) for image in images]
        return torch.stack([torch.from_numpy(normalised(square, MEAN, STD)) for square in squares])

    @torch.no_grad()
    def encode(self, batch: Tensor) -> TokenStream:
        """The stream of prepared pixels (B, 3, H, W), on the encoder's device and in its dtype."""
        pixels = batch.to(self.device, self.dtype)
        if self.reading == "projected":
            return self.stream.split(self.model(pixels).image_embeds[:, None])
        if self.reading == "hidden":
            return self.stream.split(self.model(pixels).last_hidden_state)
        hidden = self.model(pixels, output_hidden_states=True).hidden_states
        return self.stream.split(hidden[-2])


def _build(
    network: str,
    stream: TokenStreamSpec,
    reading: Reading,
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ClipEncoder:
    tensors = None
    if weights != "random":
        path = Path(weights)
        if weights == "pretrained":
            path = sources.downloaded(network, REPOSITORIES[network], [WEIGHTS])
        if (path / WEIGHTS).is_file():
            path = path / WEIGHTS
        tensors = sources.read_tensors(path, network, lambda name: name.startswith(TOWER))
    return ClipEncoder(SIZES[network], stream, reading, tensors=tensors, device=device, dtype=dtype)


def _spec(name: str, network: str, reading: Reading, summary: str) -> EncoderSpec:
    stream = stream_of(network, SIZES[network], reading)
    paper = "arXiv:2103.00020" if "openai" in REPOSITORIES[network] else "arXiv:2212.07143"
    return EncoderSpec(
        name=name,
        summary=summary,
        build=partial(_build, network, stream, reading),
        stream=stream,
        requires=("transformers",),
        preprocessing="224 px: shorter side resized bicubic (PIL), centre crop, OpenAI's CLIP mean "
        "and std",
        source=f"{REPOSITORIES[network]} ({paper})",
        license="MIT",
    )


@hookimpl
def modalign_encoders() -> list[EncoderSpec]:
    """Towers of OpenAI (B/32, L/14) and LAION (H/14, bigG/14)."""
    return [
        _spec(
            "clip-vitb32-pooled",
            "clip-vitb32",
            "projected",
            "OpenAI CLIP ViT-B/32, the vector it compares with text",
        ),
        _spec(
            "clip-vitl14",
            "clip-vitl14",
            "hidden",
            "OpenAI CLIP ViT-L/14, last block without the final norm: what Shap-E reads",
        ),
        _spec(
            "clip-vitl14-pooled",
            "clip-vitl14",
            "projected",
            "OpenAI CLIP ViT-L/14, the vector it compares with text",
        ),
        _spec(
            "clip-vith14",
            "clip-vith14",
            "penultimate",
            "LAION CLIP ViT-H/14, last block but one: what IP-Adapter Plus reads",
        ),
        _spec(
            "clip-vith14-pooled",
            "clip-vith14",
            "projected",
            "LAION CLIP ViT-H/14, the vector it compares with text: what IP-Adapter reads",
        ),
        _spec(
            "clip-vitbigg14-pooled",
            "clip-vitbigg14",
            "projected",
            "LAION CLIP ViT-bigG/14, the vector it compares with text: what Kandinsky 2.2 reads",
        ),
    ]
