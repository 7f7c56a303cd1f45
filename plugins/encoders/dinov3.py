"""DINOv3 vision transformers as target encoders."""

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

from .dinov3_names import to_timm, to_transformers

if TYPE_CHECKING:
    from PIL.Image import Image

Backend = Literal["transformers", "timm"]

MEAN = (0.485, 0.456, 0.406)  # ImageNet's
STD = (0.229, 0.224, 0.225)
LAYERNORM_EPS = 1e-5


def _sizes(dim: int, depth: int, heads: int, gated: bool = False) -> dict[str, Any]:
    """Fields of transformers' config for a published DINOv3, read at 512 px.

    Source: configs of the repositories below; timm registers the same networks.
    """
    return {
        "hidden_size": dim,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * dim,
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "num_register_tokens": 4,
        "patch_size": 16,
        "image_size": 512,
    }


SIZES = {
    "dinov3-vits16": _sizes(384, 12, 6),
    "dinov3-vitb16": _sizes(768, 12, 12),
    "dinov3-vitl16": _sizes(1024, 24, 16),
    "dinov3-vith16plus": _sizes(1280, 32, 20, gated=True),
}
SUMMARIES = {
    "dinov3-vits16": "DINOv3 ViT-S/16 at 512 px",
    "dinov3-vitb16": "DINOv3 ViT-B/16 at 512 px",
    "dinov3-vitl16": "DINOv3 ViT-L/16 at 512 px: what TRELLIS.2 reads in its 512 mode",
    "dinov3-vith16plus": "DINOv3 ViT-H+/16 at 512 px",
}


def stream_of(name: str, sizes: Mapping[str, Any]) -> TokenStreamSpec:
    """The stream of a DINOv3 of these `sizes`: class token, registers, patches row-major."""
    side = sizes["image_size"] // sizes["patch_size"]
    shapes = {"cls": (1,), "registers": (sizes["num_register_tokens"],), "patches": (side, side)}
    return TokenStreamSpec(
        space=f"{name}/layernorm@{sizes['image_size']}",
        groups=tuple(
            TokenGroup(name=group, shape=shape, dim=sizes["hidden_size"])
            for group, shape in shapes.items()
        ),
    )


STREAMS = {name: stream_of(name, sizes) for name, sizes in SIZES.items()}


class Dinov3Encoder:
    """Tokens of the last block before the model's own norm, each put through an affine-free one.

    Places are rotary and relative to the picture's edges, so any multiple of the patch is read.
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

        `tensors` may carry the names of timm's or transformers' files. Both backends compute the
        same numbers, up to float32.

        Raises:
            WeightsError: `tensors` do not fit `sizes`.
        """
        from transformers import DINOv3ViTConfig, DINOv3ViTModel

        self.stream = stream
        self.image_size: int = sizes["image_size"]
        self.device = torch.device(device)
        self.dtype = dtype
        if backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {get_args(Backend)}, got {backend!r}")
        self.backend = backend
        self.model = sources.load_frozen(
            DINOv3ViTModel,
            DINOv3ViTConfig(**sizes),
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
        raw = self.raw_tokens(batch)
        return self.stream.split(layer_norm(raw, raw.shape[-1:], eps=LAYERNORM_EPS))

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
        places = self.model.rope_embeddings(pixels)
        embedded = self.model.embeddings(pixels)
        tokens: Tensor = self.model.model(embedded, position_embeddings=places).last_hidden_state
        return tokens


def _as_timm(model: Any, sizes: Mapping[str, Any]) -> Any:
    import timm

    with torch.device(model.device):
        twin = timm.models.eva.Eva(
            img_size=sizes["image_size"],
            patch_size=sizes["patch_size"],
            embed_dim=sizes["hidden_size"],
            depth=sizes["num_hidden_layers"],
            num_heads=sizes["num_attention_heads"],
            mlp_ratio=sizes["intermediate_size"] / sizes["hidden_size"],
            swiglu_mlp=sizes["use_gated_mlp"],
            swiglu_align_to=8 if sizes["use_gated_mlp"] else 0,
            num_reg_tokens=sizes["num_register_tokens"],
            qkv_bias=True,
            init_values=1.0,
            rope_type="dinov3",
            rope_temperature=100,
            rope_rotate_half=True,
            use_rot_pos_emb=True,
            use_abs_pos_emb=False,
            use_fc_norm=False,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-5),
            num_classes=0,
            dynamic_img_size=True,
        )
    twin = twin.to(model.dtype)
    if model.device.type != "meta":
        twin.load_state_dict(to_timm(sources.file_tensors(model)), strict=True)
    return twin.eval().requires_grad_(False)


def _repository(name: str) -> str:
    return f"facebook/{name}-pretrain-lvd1689m"


def _build(
    name: str,
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: Backend = "transformers",
) -> Dinov3Encoder:
    tensors = None
    if weights != "random":
        path = Path(weights)
        if weights == "pretrained":
            path = sources.downloaded(name, _repository(name), [sources.SHARDS])
        tensors = sources.read_tensors(path, name)
    return Dinov3Encoder(
        SIZES[name], STREAMS[name], tensors=tensors, device=device, dtype=dtype, backend=backend
    )


@hookimpl
def modalign_encoders() -> list[EncoderSpec]:
    """DINOv3 S, B, L and H+, as trained on the web pictures of LVD-1689M."""
    return [
        EncoderSpec(
            name=name,
            summary=summary,
            build=partial(_build, name),
            stream=STREAMS[name],
            requires=("transformers",),
            # transformers' own processor squashes to a square instead, bilinear on floats.
            preprocessing="512 px: shorter side resized bicubic (PIL), centre crop, ImageNet mean "
            "and std, as timm prepares it",
            source=f"{_repository(name)} (arXiv:2508.10104)",
            license="DINOv3 License (gated: accept it on the Hub first)",
        )
        for name, summary in SUMMARIES.items()
    ]
