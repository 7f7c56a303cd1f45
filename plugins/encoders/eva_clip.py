"""EVA-CLIP E/14+ as a target encoder: its patches, whole or pooled as BLIP3-o reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from modalign_plugins.pictures import centre_square, normalised
from modalign_plugins.weights import sources
from torch import Tensor
from torch.nn.functional import avg_pool2d

from modalign import (
    EncoderSpec,
    SpaceMap,
    TokenGroup,
    TokenStream,
    TokenStreamSpec,
    WeightsError,
    hookimpl,
)

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP's
STD = (0.26862954, 0.26130258, 0.27577711)
POOL = 4  # BLIP3-o averages 4 by 4 patches; facts of the released GAP3D, section 3

# timm's eva02_enormous_patch14_clip_224 at twice its resolution, without norm and head.
E14_PLUS: dict[str, Any] = {
    "img_size": 448,
    "patch_size": 14,
    "embed_dim": 1792,
    "depth": 64,
    "num_heads": 16,
    "mlp_ratio": 15360 / 1792,
}
NETWORK = "eva-clip-e14-plus"
REPOSITORY = "timm/eva02_enormous_patch14_clip_224.laion2b_plus"
OPEN_CLIP = "open_clip_model.safetensors"


def stream_of(name: str, sizes: Mapping[str, Any], pool: int) -> TokenStreamSpec:
    """The stream of a tower: patches row-major, averaged over squares of `pool` by `pool`."""
    side = sizes["img_size"] // sizes["patch_size"] // pool
    return TokenStreamSpec(
        space=f"{name}/{'hidden' if pool == 1 else 'pooled'}@{sizes['img_size']}",
        groups=(TokenGroup(name="patches", shape=(side, side), dim=sizes["embed_dim"]),),
    )


FULL = stream_of(NETWORK, E14_PLUS, pool=1)
POOLED = stream_of(NETWORK, E14_PLUS, pool=POOL)


def pooled(patches: Tensor, pool: int) -> Tensor:
    """Patches (B, K, D) of a square grid, averaged over squares: (B, K / pool^2, D)."""
    side = round(patches.shape[1] ** 0.5)
    grid = patches.transpose(1, 2).unflatten(2, (side, side))  # (B, D, side, side)
    return avg_pool2d(grid, pool).flatten(2).transpose(1, 2)


class EvaClipEncoder:
    """What the last block of an EVA-CLIP tower returns for the patches, with no norm after it.

    The network is of timm, with post-norm blocks and learnt places. The class token is dropped.
    Source: facts of the released GAP3D, section 3, column BLIP3-o.
    """

    def __init__(
        self,
        sizes: Mapping[str, Any],
        stream: TokenStreamSpec,
        *,
        tensors: Mapping[str, Tensor] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`sizes` are arguments of timm's Eva; `tensors` None draws random weights.

        `tensors` may carry the names of timm's, open_clip's or EVA's own files. Places learnt on
        another grid are resampled, as timm does.

        Raises:
            WeightsError: `tensors` do not fit `sizes`.
        """
        from timm.models.eva import Eva

        self.stream = stream
        self.image_size: int = sizes["img_size"]
        side = sizes["img_size"] // sizes["patch_size"]
        self.pool = side // stream.group("patches").shape[0]
        self.device = torch.device(device)
        self.dtype = dtype
        with self.device if tensors is None else torch.device("meta"):
            model = Eva(
                **sizes,
                use_post_norm=True,
                use_post_transformer_norm=False,
                global_pool="token",
                num_classes=0,
            )
        if tensors is not None:
            _load(model, tensors, stream.space)
        self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)

    def prepare(self, images: Sequence[Image]) -> Tensor:
        """Pixels (B, 3, H, W): shorter side resized (bicubic, PIL), centre cropped, normalised."""
        squares = [centre_square(image, self.image_size) for image in images]
        return torch.stack([torch.from_numpy(normalised(square, MEAN, STD)) for square in squares])

    @torch.no_grad()
    def encode(self, batch: Tensor) -> TokenStream:
        """The stream of prepared pixels (B, 3, H, W), on the encoder's device and in its dtype."""
        tokens = self.model.forward_features(batch.to(self.device, self.dtype))
        patches = tokens[:, 1:]  # (B, K, D)
        return self.stream.split(patches if self.pool == 1 else pooled(patches, self.pool))


def _load(model: Any, tensors: Mapping[str, Tensor], owner: str) -> None:
    """Put `tensors` into a timm Eva that lies on the meta device."""
    from timm.models.eva import checkpoint_filter_fn

    found = checkpoint_filter_fn(dict(tensors), model)
    expected = model.state_dict()
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise WeightsError(
            f"{owner!r} has {len(missing)} tensors that these weights do not hold, for example "
            f"{missing[0]!r}; are they of another model?"
        )
    kept = {name: found[name] for name in expected}
    wrong = [name for name in expected if kept[name].shape != expected[name].shape]
    if wrong:
        raise WeightsError(
            f"{owner!r} has {len(wrong)} tensors of another shape than these weights hold, for "
            f"example {wrong[0]!r}: got {tuple(kept[wrong[0]].shape)}, "
            f"expected {tuple(expected[wrong[0]].shape)}"
        )
    model.load_state_dict(kept, strict=True, assign=True)
    for block in model.blocks:  # keys have no bias, which timm keeps as zeros in no file
        block.attn.k_bias = torch.zeros_like(block.attn.q_bias)


def _in_tower(name: str) -> bool:
    return not name.startswith(("text.", "logit_"))


def _build(
    stream: TokenStreamSpec,
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> EvaClipEncoder:
    tensors = None
    if weights != "random":
        path = Path(weights)
        if weights == "pretrained":
            path = sources.downloaded(NETWORK, REPOSITORY, [sources.SHARDS])
        if (path / OPEN_CLIP).is_file():
            path = path / OPEN_CLIP
        tensors = sources.read_tensors(path, NETWORK, _in_tower)
    return EvaClipEncoder(E14_PLUS, stream, tensors=tensors, device=device, dtype=dtype)


def _build_pooling(**_: Any) -> tuple[Callable[[TokenStream], TokenStream], None]:
    """Averages need no weights, and no map leads back from them."""
    return lambda stream: {"patches": pooled(stream["patches"], POOL)}, None


def _spec(name: str, stream: TokenStreamSpec, summary: str) -> EncoderSpec:
    return EncoderSpec(
        name=name,
        summary=summary,
        build=partial(_build, stream),
        stream=stream,
        requires=("timm",),
        preprocessing="448 px: shorter side resized bicubic (PIL), centre crop, OpenAI's CLIP mean "
        "and std",
        # BLIP3-o's own copy of the tower (jiuhai/eva_clip_vision_tower) is a pickle, which nothing
        # here opens; its tensors, saved as safetensors, load from a path.
        source=f"{REPOSITORY}, places resampled from 224 px (arXiv:2303.15389)",
        license="MIT",
    )


@hookimpl
def modalign_encoders() -> list[EncoderSpec]:
    """EVA-CLIP E/14+ at 448 px, pooled and whole."""
    return [
        _spec(NETWORK, POOLED, "EVA-CLIP E/14+ at 448 px, pooled to 64 tokens: as BLIP3-o does"),
        _spec(f"{NETWORK}-full", FULL, "EVA-CLIP E/14+ at 448 px, all 1024 patches"),
    ]


@hookimpl
def modalign_space_maps() -> list[SpaceMap]:
    """All patches to pooled ones; there is no way back."""
    return [
        SpaceMap(
            name=f"{NETWORK}-pooling",
            summary=f"averages of {POOL} by {POOL} patches",
            source_stream=FULL,
            target_stream=POOLED,
            build=_build_pooling,
            one_way=True,
        )
    ]
