"""FLUX.1 Redux [dev]: SigLIP tokens to a picture. Both networks are non-commercial."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modalign import GeneratorSpec, TokenGroup, TokenStream, TokenStreamSpec

from . import loading
from .driving import as_picture, one_by_one, reported

if TYPE_CHECKING:
    from modalign.specs import Asset, ProgressCallback

NAME = "flux-redux"
REDUX = "black-forest-labs/FLUX.1-Redux-dev"
BASE = "black-forest-labs/FLUX.1-dev"
FILES = {
    REDUX: [f"image_embedder/{name}" for name in (loading.CONFIG, loading.WEIGHTS)],
    BASE: [
        "transformer/*.json",  # how it is made, and which of its files holds what
        "transformer/*.safetensors",
        f"vae/{loading.CONFIG}",
        f"vae/{loading.WEIGHTS}",
        f"scheduler/{loading.SCHEDULER_CONFIG}",
    ],
}
STREAM = TokenStreamSpec(
    space="siglip-so400m-patch14-384/affine-layernorm@384",
    groups=(TokenGroup(name="patches", shape=(27, 27), dim=1152),),
)
NUM_TEXT_TOKENS = 512
# FLUX.1 [dev] as released, where it differs from the defaults of diffusers.
# Source: scripts/convert_flux_to_diffusers.py there.
TRANSFORMER = {"guidance_embeds": True}
VAE = {
    "sample_size": 1024,
    "latent_channels": 16,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
SCHEDULER = {"shift": 3.0, "use_dynamic_shifting": True}


class FluxRedux:
    """Drives `FluxPipeline` by its `prompt_embeds`: the tokens, embedded, follow an absent text.

    The text is what diffusers' FluxPriorReduxPipeline puts there when it has no text encoders:
    zeros.

    Args:
        pipeline: the stock pipeline without text encoders, frozen.
        image_embedder: the stock `ReduxImageEncoder`, frozen.
        size: pixels per side.
    """

    accepts = STREAM

    def __init__(self, pipeline: Any, image_embedder: Any, size: int = 1024) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.image_embedder = image_embedder
        self.size = size

    @torch.no_grad()
    def generate(
        self,
        stream: TokenStream,
        *,
        seed: int,
        progress: ProgressCallback | None = None,
        steps: int = 50,
        guidance: float = 2.5,
    ) -> list[Asset]:
        """One picture per batch element; element k draws its noise from `seed + k`.

        `guidance` is a number that the network reads: nothing is contrasted. Defaults are those of
        Redux' example in diffusers.

        Raises:
            GenerationError: a stage produced numbers that are not finite.
        """
        pipeline = self.pipeline
        config = pipeline.transformer.config

        def paint(tokens: Tensor, noise: torch.Generator) -> Asset:
            text = tokens.new_zeros(1, NUM_TEXT_TOKENS, config.joint_attention_dim)
            embedded = self.image_embedder(tokens).image_embeds  # (1, K, C)
            with reported("picture", pipeline.transformer, pipeline.scheduler, progress):
                made = pipeline(
                    prompt_embeds=torch.cat([text, embedded], dim=1),
                    pooled_prompt_embeds=tokens.new_zeros(1, config.pooled_projection_dim),
                    height=self.size,
                    width=self.size,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=noise,
                    output_type="np",
                )
            return as_picture("picture", made.images[0])

        return one_by_one(self.accepts, stream, pipeline.transformer, seed, paint)


def _build(
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:  # a FluxRedux: its options have names, which the protocol's `**options` hides
    folders = None if weights == "random" else loading.located(NAME, weights, FILES)

    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
    )
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

    if folders is None:
        with torch.device(device):
            networks = FluxTransformer2DModel(**TRANSFORMER), AutoencoderKL(**VAE)
            networks += (ReduxImageEncoder(),)
        transformer, vae, embedder = (loading.frozen(n, device, dtype) for n in networks)
        scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    else:
        redux, base = folders
        place: dict[str, Any] = {"owner": NAME, "device": device, "dtype": dtype}
        transformer = loading.model(FluxTransformer2DModel, base / "transformer", **place)
        vae = loading.model(AutoencoderKL, base / "vae", **place)
        embedder = loading.model(ReduxImageEncoder, redux / "image_embedder", **place)
        scheduler = loading.scheduler(base / "scheduler", owner=NAME)
    pipeline = FluxPipeline(
        scheduler=scheduler,
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    return FluxRedux(pipeline, embedder)


SPEC = GeneratorSpec(
    name=NAME,
    summary="FLUX.1 Redux [dev], NON-COMMERCIAL: pictures of 1024 x 1024 from SigLIP tokens",
    build=_build,
    accepts=STREAM,
    produces="picture",
    requires=("diffusers",),
    source=f"{REDUX} on {BASE}; both ask for consent to their licence before a download",
    license="FLUX.1 [dev] Non-Commercial License",
    null_condition="none: guidance is a number that the network reads",
    image_domain="natural pictures",
)
