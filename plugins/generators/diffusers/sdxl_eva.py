"""BLIP3-o's decoder (arXiv:2505.09568): an SDXL that reads 64 pooled EVA-CLIP tokens as its text.

What is known without the weights: a UNet of SDXL's kind whose cross-attention is as wide as the
tokens, 1792, beside a VAE and a scheduler of diffusers. What is not: which vector takes the place
of SDXL's pooled text. The mean of the tokens is taken here, the only vector of theirs that needs no
further weights; a network that reads another width is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modalign import GeneratorSpec, TokenGroup, TokenStream, TokenStreamSpec, WeightsError

from . import loading
from .driving import as_picture, one_by_one, reported

if TYPE_CHECKING:
    from modalign.specs import Asset, ProgressCallback

NAME = "sdxl-eva"
REPOSITORY = "BLIP3o/BLIP3o-Model-8B"
DECODER = "diffusion-decoder"
FILES = {
    REPOSITORY: [
        *(f"{DECODER}/{part}/*.json" for part in ("unet", "vae")),
        *(f"{DECODER}/{part}/*.safetensors" for part in ("unet", "vae")),
        f"{DECODER}/scheduler/{loading.SCHEDULER_CONFIG}",
    ]
}
STREAM = TokenStreamSpec(
    space="eva-clip-e14-plus/pooled@448",
    groups=(TokenGroup(name="patches", shape=(8, 8), dim=1792),),
)
NUM_SIZES = 6  # original size, crop and target size: SDXL's micro-conditioning


class SDXLEva:
    """Drives `StableDiffusionXLPipeline` by its `prompt_embeds`: the tokens are the text.

    Sizes and crop, which SDXL is also told, are those of the picture that is made.

    Args:
        pipeline: the stock pipeline without text encoders, frozen.

    Raises:
        WeightsError: the network reads other widths than those of the tokens.
    """

    accepts = STREAM

    def __init__(self, pipeline: Any) -> None:
        config = pipeline.unet.config
        pooled = config.projection_class_embeddings_input_dim or 0
        widths = {
            "cross-attention": config.cross_attention_dim,
            "pooled text": pooled - NUM_SIZES * (config.addition_time_embed_dim or 0),
        }
        (dim,) = {group.dim for group in STREAM.groups}
        for place, width in widths.items():
            if width != dim:
                raise WeightsError(
                    f"{NAME!r} gives tokens of {dim} to the {place} of its network, which reads "
                    f"{width}; this is not the decoder of these tokens"
                )
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline

    def generate(
        self,
        stream: TokenStream,
        *,
        seed: int,
        progress: ProgressCallback | None = None,
        steps: int = 50,
        guidance: float = 5.0,
    ) -> list[Asset]:
        """One picture per batch element; element k draws its noise from `seed + k`.

        `guidance` 1 is off. Defaults are those of the pipeline.

        Raises:
            GenerationError: a stage produced numbers that are not finite.
        """
        pipeline = self.pipeline

        def paint(tokens: Tensor, noise: torch.Generator) -> Asset:
            pooled = tokens.mean(dim=1)  # (1, D)
            with reported("picture", pipeline.unet, pipeline.scheduler, progress):
                made = pipeline(
                    prompt_embeds=tokens,
                    pooled_prompt_embeds=pooled,
                    negative_prompt_embeds=torch.zeros_like(tokens),
                    negative_pooled_prompt_embeds=torch.zeros_like(pooled),
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=noise,
                    output_type="np",
                )
            return as_picture("picture", made.images[0])

        return one_by_one(self.accepts, stream, pipeline.unet, seed, paint)


def _build(
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:  # an SDXLEva: its options have names, which the protocol's `**options` hides
    if weights == "random":
        loading.refuse_random(NAME, REPOSITORY, "the configuration of its network")
    (folder,) = loading.located(NAME, weights, FILES)
    decoder = folder / DECODER

    from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel

    place: dict[str, Any] = {"owner": NAME, "device": device, "dtype": dtype}
    pipeline = StableDiffusionXLPipeline(
        vae=loading.model(AutoencoderKL, decoder / "vae", **place),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=loading.model(UNet2DConditionModel, decoder / "unet", **place),
        scheduler=loading.scheduler(decoder / "scheduler", owner=NAME),
        add_watermarker=False,
    )
    return SDXLEva(pipeline)


SPEC = GeneratorSpec(
    name=NAME,
    summary="BLIP3-o's decoder: SDXL that reads 64 pooled EVA-CLIP tokens in place of a text",
    build=_build,
    accepts=STREAM,
    produces="picture",
    requires=("diffusers",),
    source=f"{REPOSITORY}, folder {DECODER} (arXiv:2505.09568)",
    license="unclear: its code has no licence file; see the model card of the weights",
    null_condition="zeros",
    image_domain="natural pictures",
)
