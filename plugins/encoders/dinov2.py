"""DINOv2 as a target encoder: every published size, with registers or without, and the mini."""

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

from modalign import EncoderSpec, SpaceMap, TokenStream, TokenStreamSpec, hookimpl

from .dinov2_names import to_timm, to_transformers
from .dinov2_sizes import (
    MINI,
    REPOSITORIES,
    SIZES,
    STREAMS,
    SUMMARIES,
)
from .dinov2_spaces import StreamMap, affine_maps, affine_stream, final_norm

if TYPE_CHECKING:
    from PIL.Image import Image

Backend = Literal["transformers", "timm"]

# ImageNet statistics and the LayerNorm's epsilon: facts of the released GAP3D, section 3.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LAYERNORM_EPS = 1e-5
MINI_WEIGHTS = "dinov2-mini-reg.safetensors"


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
        from transformers import (
            Dinov2Config,
            Dinov2Model,
            Dinov2WithRegistersConfig,
            Dinov2WithRegistersModel,
        )

        network, config = (
            (Dinov2WithRegistersModel, Dinov2WithRegistersConfig)
            if "registers" in stream.names
            else (Dinov2Model, Dinov2Config)
        )
        self.stream = stream
        self.image_size: int = sizes["image_size"]
        self.device = torch.device(device)
        self.dtype = dtype
        if backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {get_args(Backend)}, got {backend!r}")
        self.backend = backend
        self.model = sources.load_frozen(
            network,
            config(**sizes),
            None if tensors is None else to_transformers(tensors, gated=_gated(sizes)),
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


def _gated(sizes: Mapping[str, Any]) -> bool:
    return sizes.get("use_swiglu_ffn", False)


def _as_timm(model: Any, sizes: Mapping[str, Any]) -> Any:
    import timm

    options: dict[str, Any] = {"mlp_ratio": sizes["mlp_ratio"]}
    if _gated(sizes):
        # A gated layer is two thirds as wide, in eights; timm counts its two halves together.
        wide = sizes["hidden_size"] * sizes["mlp_ratio"]
        options = {
            "mlp_ratio": 2 * ((int(wide * 2 / 3) + 7) // 8 * 8) / sizes["hidden_size"],
            "mlp_layer": timm.layers.SwiGLUPacked,
            "act_layer": torch.nn.SiLU,
        }
    if "num_register_tokens" in sizes:
        options |= {"reg_tokens": sizes["num_register_tokens"], "no_embed_class": True}
    with torch.device(model.device):
        twin = timm.models.vision_transformer.VisionTransformer(
            img_size=sizes["image_size"],
            patch_size=sizes["patch_size"],
            embed_dim=sizes["hidden_size"],
            depth=sizes["num_hidden_layers"],
            num_heads=sizes["num_attention_heads"],
            init_values=1.0,
            num_classes=0,
            dynamic_img_size=True,
            **options,
        )
    twin = twin.to(model.dtype)
    if model.device.type != "meta":
        twin.load_state_dict(to_timm(sources.file_tensors(model)), strict=True)
    return twin.eval().requires_grad_(False)


def _weights_path(name: str, weights: str | Path) -> Path:
    if weights != "pretrained":
        return Path(weights)
    if name == MINI:
        return sources.shipped(MINI_WEIGHTS)
    return sources.downloaded(name, REPOSITORIES[name], [sources.SHARDS])


def _build(
    name: str,
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: Backend = "transformers",
) -> Dinov2Encoder:
    tensors = None
    if weights != "random":
        tensors = sources.read_tensors(_weights_path(name, weights), name)
    return Dinov2Encoder(
        SIZES[name], STREAMS[name], tensors=tensors, device=device, dtype=dtype, backend=backend
    )


def _build_map(
    name: str,
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[StreamMap, StreamMap]:
    if weights == "random":  # a fresh norm has learnt nothing
        dim = SIZES[name]["hidden_size"]
        gain, bias = torch.ones(dim), torch.zeros(dim)
    else:
        gain, bias = final_norm(_weights_path(name, weights), name)
    return affine_maps(gain, bias, device)


def _spec(name: str, **about: Any) -> EncoderSpec:
    side = SIZES[name]["image_size"]
    return EncoderSpec(
        name=name,
        build=partial(_build, name),
        stream=STREAMS[name],
        requires=("transformers",),
        license="Apache-2.0",
        preprocessing=f"{side} px: shorter side resized bicubic (PIL), centre crop, "
        "ImageNet mean and std",
        **about,
    )


@hookimpl
def modalign_encoders() -> list[EncoderSpec]:
    """DINOv2 S, B, L and g, with registers and without, and the mini."""
    papers = {True: "arXiv:2304.07193, 2309.16588", False: "arXiv:2304.07193"}
    published = [
        _spec(
            name,
            summary=summary,
            source=f"{REPOSITORIES[name]} ({papers['num_register_tokens' in SIZES[name]]})",
        )
        for name, summary in SUMMARIES.items()
    ]
    mini = _spec(
        MINI,
        summary="the same network with 1.2 M parameters at 112 px, trained on the toy world",
        source="ships with modalign; trained by examples/mini",
    )
    return [*published, mini]


@hookimpl
def modalign_space_maps() -> list[SpaceMap]:
    """For each of them, affine-free tokens to `last_hidden_state`."""
    return [
        SpaceMap(
            name=f"{name}-affine",
            summary=f"the final norm's own gain and bias, as in last_hidden_state of {name}",
            source_stream=stream,
            target_stream=affine_stream(stream),
            build=partial(_build_map, name),
            source=f"layernorm.weight and .bias of {name}",
            license="Apache-2.0",
        )
        for name, stream in STREAMS.items()
    ]
