"""DINOv2 with registers as a target encoder, at full size and as the mini that ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from modalign_plugins.pictures import centre_square, normalised
from modalign_plugins.weights import sources
from torch import Tensor
from torch.nn.functional import layer_norm

from modalign import EncoderSpec, TokenGroup, TokenStream, TokenStreamSpec, hookimpl

from .dinov2_names import to_timm, to_transformers

if TYPE_CHECKING:
    from PIL.Image import Image

Backend = Literal["transformers", "timm"]

# ImageNet statistics and the LayerNorm's epsilon: facts of the released GAP3D, section 3.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LAYERNORM_EPS = 1e-5

VITL14_REG: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
    "num_register_tokens": 4,
}
MINI_REG: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "mlp_ratio": 4,
    "image_size": 112,
    "patch_size": 14,
    "num_register_tokens": 4,
}
REPOSITORY = "facebook/dinov2-with-registers-large"
MINI_WEIGHTS = "dinov2-mini-reg.safetensors"


def stream_of(name: str, sizes: Mapping[str, Any]) -> TokenStreamSpec:
    """The stream of a DINOv2 of these `sizes`: class token, registers, patches row-major."""
    side = sizes["image_size"] // sizes["patch_size"]
    dim = sizes["hidden_size"]
    return TokenStreamSpec(
        space=f"{name}/layernorm@{sizes['image_size']}",
        groups=(
            TokenGroup(name="cls", shape=(1,), dim=dim),
            TokenGroup(name="registers", shape=(sizes["num_register_tokens"],), dim=dim),
            TokenGroup(name="patches", shape=(side, side), dim=dim),
        ),
    )


STREAM = stream_of("dinov2-vitl14-reg", VITL14_REG)
MINI_STREAM = stream_of("dinov2-mini-reg", MINI_REG)


class Dinov2Encoder:
    """Tokens of the last block before the model's own norm, each put through an affine-free one.

    These are the tokens that TRELLIS reads. `last_hidden_state` has the same shape and other
    numbers: the model's norm has learnt a gain and a bias.
    Source: facts of the released GAP3D, section 3.
    """

    def __init__(
        self,
        sizes: Mapping[str, Any],
        stream: TokenStreamSpec,
        *,
        tensors: Mapping[str, Tensor] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: Backend = "transformers",
    ) -> None:
        """`sizes` are fields of transformers' config; `tensors` None draws random weights.

        `tensors` may carry the names of torch-hub, timm or transformers' files. Both backends
        compute the same numbers.

        Raises:
            WeightsError: `tensors` do not fit `sizes`.
        """
        from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

        self.stream = stream
        self.image_size: int = sizes["image_size"]
        self.device = torch.device(device)
        self.dtype = dtype
        if backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {get_args(Backend)}, got {backend!r}")
        self.backend = backend
        self.model = sources.load_frozen(
            Dinov2WithRegistersModel,
            Dinov2WithRegistersConfig(**sizes),
            None if tensors is None else to_transformers(tensors),
            owner=stream.space,
            device=device,
            dtype=dtype,
        )
        if backend == "timm":
            self.model = _as_timm(self.model, sizes)

    def prepare(self, images: Sequence[Image]) -> Tensor:
        """Pixels (B, 3, H, W): shorter side resized (bicubic, PIL), centre cropped, normalised."""
        squares = [centre_square(image, self.image_size) for image in images]
        return torch.stack([torch.from_numpy(normalised(square, MEAN, STD)) for square in squares])

    def encode(self, batch: Tensor) -> TokenStream:
        """The stream of prepared pixels (B, 3, H, W), on the encoder's device and in its dtype."""
        return self.stream.split(self.tokens(batch))

    @torch.no_grad()
    def tokens(self, pixels: Tensor) -> Tensor:
        """All tokens (B, N, D) with mean 0 and variance 1 over D; any multiple of the patch."""
        raw = self.raw_tokens(pixels)
        return layer_norm(raw, raw.shape[-1:], eps=LAYERNORM_EPS)

    @torch.no_grad()
    def raw_tokens(self, pixels: Tensor) -> Tensor:
        """All tokens (B, N, D) after the last block, before any final norm."""
        pixels = pixels.to(self.device, self.dtype)
        if self.backend == "timm":
            patches, prefix = self.model.forward_intermediates(
                pixels,
                indices=1,
                norm=False,
                return_prefix_tokens=True,
                intermediates_only=True,
                output_fmt="NLC",
            )[0]
            return torch.cat([prefix, patches], dim=1)
        embedded = self.model.embeddings(pixels)
        tokens: Tensor = self.model.encoder(embedded).last_hidden_state
        return tokens

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the weights to one safetensors file, under the names of transformers' files."""
        from safetensors.torch import save_file

        if self.backend == "timm":
            raise ValueError("save from the transformers backend; timm merges two of the tensors")
        tensors = sources.file_tensors(self.model)
        written = {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}
        save_file(written, path, metadata={"format": "pt"})


def _as_timm(model: Any, sizes: Mapping[str, Any]) -> Any:
    import timm

    with torch.device(model.device):
        twin = timm.models.vision_transformer.VisionTransformer(
            img_size=sizes["image_size"],
            patch_size=sizes["patch_size"],
            embed_dim=sizes["hidden_size"],
            depth=sizes["num_hidden_layers"],
            num_heads=sizes["num_attention_heads"],
            mlp_ratio=sizes["mlp_ratio"],
            reg_tokens=sizes["num_register_tokens"],
            init_values=1.0,
            no_embed_class=True,
            num_classes=0,
            dynamic_img_size=True,
        )
    twin = twin.to(model.dtype)
    if model.device.type != "meta":
        twin.load_state_dict(to_timm(sources.file_tensors(model)), strict=True)
    return twin.eval().requires_grad_(False)


def _build(
    name: str,
    sizes: Mapping[str, Any],
    stream: TokenStreamSpec,
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: Backend = "transformers",
) -> Dinov2Encoder:
    if weights == "random":
        tensors = None
    elif weights != "pretrained":
        tensors = sources.read_tensors(Path(weights), name)
    elif sizes is MINI_REG:
        tensors = sources.read_tensors(sources.shipped(MINI_WEIGHTS), name)
    else:
        folder = sources.downloaded(name, REPOSITORY, [sources.WEIGHTS])
        tensors = sources.read_tensors(folder, name)
    return Dinov2Encoder(
        sizes, stream, tensors=tensors, device=device, dtype=dtype, backend=backend
    )


@hookimpl
def modalign_encoders() -> list[EncoderSpec]:
    """DINOv2 ViT-L/14 with registers, and the mini."""
    return [
        EncoderSpec(
            name="dinov2-vitl14-reg",
            summary="DINOv2 ViT-L/14 with registers at 518 px: what TRELLIS reads",
            build=partial(_build, "dinov2-vitl14-reg", VITL14_REG, STREAM),
            stream=STREAM,
            requires=("transformers",),
            source=f"{REPOSITORY} (arXiv:2304.07193, 2309.16588)",
            license="Apache-2.0",
        ),
        EncoderSpec(
            name="dinov2-mini-reg",
            summary="the same network with 1.2 M parameters at 112 px, trained on the toy world",
            build=partial(_build, "dinov2-mini-reg", MINI_REG, MINI_STREAM),
            stream=MINI_STREAM,
            requires=("transformers",),
            source="ships with modalign; trained by examples/mini",
            license="Apache-2.0",
        ),
    ]
