"""RAE's decoder (arXiv:2510.11690): what DINOv2-L tokens look like, 256 x 256, without sampling.

It was trained on natural pictures at 224 px, a grid of 16 x 16. Tokens of 518 px have a grid of
37 x 37, which the model's own `interpolate_latent` resamples bilinearly: fine detail is lost, and
neighbours are averaged. Look at a preview beside that of a real picture's tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modalign import GeneratorSpec, Progress, TokenGroup, TokenStream, TokenStreamSpec

from . import loading
from .driving import as_picture, one_by_one

if TYPE_CHECKING:
    from modalign.specs import Asset, ProgressCallback

NAME = "rae-decoder"
REPOSITORY = "nyu-visionx/RAE-dinov2-wReg-large-ViTXL-n08"
FILES = {REPOSITORY: [loading.CONFIG, loading.WEIGHTS]}
STREAM = TokenStreamSpec(
    space="dinov2-vitl14-reg/layernorm@518",
    groups=(TokenGroup(name="patches", shape=(37, 37), dim=1024),),
)
# Source: "ViTXL" of diffusers' scripts/convert_rae_to_diffusers.py; the encoder is DINOv2-L.
LARGE = {
    "encoder_hidden_size": 1024,
    "encoder_num_hidden_layers": 24,
    "decoder_hidden_size": 1152,
    "decoder_intermediate_size": 4096,
    "decoder_num_attention_heads": 16,
    "decoder_num_hidden_layers": 28,
}


class RAEDecoder:
    """Drives the decoding half of `AutoencoderRAE`; its encoder is never called.

    Args:
        model: the stock autoencoder, frozen.
    """

    accepts = STREAM

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def generate(
        self, stream: TokenStream, *, seed: int, progress: ProgressCallback | None = None
    ) -> list[Asset]:
        """One picture per batch element. Nothing is drawn: `seed` changes nothing.

        Raises:
            GenerationError: tokens or pixels are not finite.
        """

        def paint(tokens: Tensor, noise: torch.Generator) -> Asset:
            pixels = self.model.decode(self.latent(tokens)).sample  # (1, 3, H, W)
            if progress is not None:
                progress(Progress("picture", 1, 1))
            return as_picture("picture", pixels[0].permute(1, 2, 0))

        return one_by_one(self.accepts, stream, self.model, seed, paint)

    def latent(self, tokens: Tensor) -> Tensor:
        """Tokens (B, K, D) as the latent (B, D, H, W) that the model's `encode` would return."""
        tokens = self.model.decoder.interpolate_latent(tokens)  # (B, H W, D)
        side = round(tokens.shape[1] ** 0.5)
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))
        # The model's own statistics, one mean and deviation per channel and place: `decode`
        # undoes what is done here, as it does after `encode`.
        latent: Tensor = self.model._normalize_latents(grid) * self.model.config.scaling_factor
        return latent


def _build(
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:  # a RAEDecoder: the protocol's `**options` would hide that it has none
    if weights == "random":
        from diffusers import AutoencoderRAE

        with torch.device(device):
            model = AutoencoderRAE(**LARGE)
        model = loading.frozen(model, device, dtype)
    else:
        (folder,) = loading.located(NAME, weights, FILES)

        from diffusers import AutoencoderRAE

        model = loading.model(AutoencoderRAE, folder, owner=NAME, device=device, dtype=dtype)
    model.encoder = None  # 0.3 B parameters that nobody calls
    return RAEDecoder(model)


SPEC = GeneratorSpec(
    name=NAME,
    summary="RAE's decoder: what DINOv2-L tokens look like, 256 x 256, without sampling",
    build=_build,
    accepts=STREAM,
    produces="picture",
    decodes=True,
    requires=("diffusers", "transformers"),
    source=f"{REPOSITORY} (arXiv:2510.11690)",
    license="MIT (code); for the weights see their model card",
    null_condition="none: nothing is sampled",
    image_domain="natural pictures",
)
