"""Sizes of the published DINOv2 networks and of the mini, and the streams they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modalign import TokenGroup, TokenStreamSpec

MINI = "dinov2-mini-reg"


def _sizes(dim: int, depth: int, heads: int, registers: int, gated: bool = False) -> dict[str, Any]:
    """Fields of transformers' config for a published DINOv2: patches of 14, 518 px, 1370 places.

    Source: configs of the repositories in `REPOSITORIES`; timm registers the same networks.
    """
    sizes = {
        "hidden_size": dim,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "mlp_ratio": 4,
        "use_swiglu_ffn": gated,
        "image_size": 518,
        "patch_size": 14,
    }
    return sizes | {"num_register_tokens": registers} if registers else sizes


PUBLISHED: dict[str, dict[str, Any]] = {
    "dinov2-vits14": _sizes(384, 12, 6, registers=0),
    "dinov2-vits14-reg": _sizes(384, 12, 6, registers=4),
    "dinov2-vitb14": _sizes(768, 12, 12, registers=0),
    "dinov2-vitb14-reg": _sizes(768, 12, 12, registers=4),
    "dinov2-vitl14": _sizes(1024, 24, 16, registers=0),
    "dinov2-vitl14-reg": _sizes(1024, 24, 16, registers=4),
    "dinov2-vitg14": _sizes(1536, 40, 24, registers=0, gated=True),
    "dinov2-vitg14-reg": _sizes(1536, 40, 24, registers=4, gated=True),
}
REPOSITORIES = {
    "dinov2-vits14": "facebook/dinov2-small",
    "dinov2-vits14-reg": "facebook/dinov2-with-registers-small",
    "dinov2-vitb14": "facebook/dinov2-base",
    "dinov2-vitb14-reg": "facebook/dinov2-with-registers-base",
    "dinov2-vitl14": "facebook/dinov2-large",
    "dinov2-vitl14-reg": "facebook/dinov2-with-registers-large",
    "dinov2-vitg14": "facebook/dinov2-giant",
    "dinov2-vitg14-reg": "facebook/dinov2-with-registers-giant",
}
SUMMARIES = {
    "dinov2-vits14": "DINOv2 ViT-S/14 at 518 px",
    "dinov2-vits14-reg": "DINOv2 ViT-S/14 with registers at 518 px",
    "dinov2-vitb14": "DINOv2 ViT-B/14 at 518 px",
    "dinov2-vitb14-reg": "DINOv2 ViT-B/14 with registers at 518 px",
    "dinov2-vitl14": "DINOv2 ViT-L/14 at 518 px: what Hunyuan3D-2.1 reads, after its affine norm",
    "dinov2-vitl14-reg": "DINOv2 ViT-L/14 with registers at 518 px: what TRELLIS reads",
    "dinov2-vitg14": "DINOv2 ViT-g/14 at 518 px: what Hunyuan3D-2 reads, after its affine norm",
    "dinov2-vitg14-reg": "DINOv2 ViT-g/14 with registers at 518 px",
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


def stream_of(name: str, sizes: Mapping[str, Any]) -> TokenStreamSpec:
    """The stream of a DINOv2 of these `sizes`: class token, any registers, patches row-major."""
    side = sizes["image_size"] // sizes["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {"cls": (1,)}
    if "num_register_tokens" in sizes:
        shapes["registers"] = (sizes["num_register_tokens"],)
    shapes["patches"] = (side, side)
    return TokenStreamSpec(
        space=f"{name}/layernorm@{sizes['image_size']}",
        groups=tuple(
            TokenGroup(name=group, shape=shape, dim=sizes["hidden_size"])
            for group, shape in shapes.items()
        ),
    )


SIZES = {**PUBLISHED, MINI: MINI_REG}
STREAMS = {name: stream_of(name, sizes) for name, sizes in SIZES.items()}
MINI_STREAM = STREAMS[MINI]
