"""IP-Adapter-plus (arXiv:2308.06721) on Stable Diffusion 1.5: CLIP ViT-H/14 tokens to a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from modalign_plugins.weights.sources import described, load_frozen
from torch import Tensor

from modalign import GeneratorSpec, TokenGroup, TokenStream, TokenStreamSpec

from . import loading
from .driving import as_picture, one_by_one, reported

if TYPE_CHECKING:
    from modalign.specs import Asset, ProgressCallback

NAME = "ip-adapter"
BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
ADAPTER = "h94/IP-Adapter"
ADAPTER_FILE = "ip-adapter-plus_sd15.safetensors"
FILES = {
    BASE: [
        *(f"{part}/{loading.CONFIG}" for part in ("unet", "vae", "text_encoder")),
        *(f"{part}/{loading.WEIGHTS}" for part in ("unet", "vae")),
        "text_encoder/model.safetensors",
        "tokenizer/*",
        f"scheduler/{loading.SCHEDULER_CONFIG}",
    ],
    ADAPTER: [
        f"models/{ADAPTER_FILE}",
        "models/image_encoder/config.json",
        "models/image_encoder/model.safetensors",
    ],
}
STREAM = TokenStreamSpec(
    space="clip-vith14/penultimate@224",
    groups=(
        TokenGroup(name="cls", shape=(1,), dim=1280),
        TokenGroup(name="patches", shape=(16, 16), dim=1280),
    ),
)
NUM_IMAGE_TOKENS = 16  # what the adapter's resampler makes of the 257
TEXT_SHAPE = (1, 77, 768)
# Stable Diffusion 1.5 as released, where it differs from the defaults of diffusers.
UNET = {"sample_size": 64, "cross_attention_dim": 768}
VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "steps_offset": 1,
}


class IPAdapter:
    """Drives `StableDiffusionPipeline` by its `ip_adapter_image_embeds`, beside an empty text.

    Args:
        pipeline: the stock pipeline with the adapter loaded, frozen.
        text: embeddings (1, L, C) of an empty prompt, with and without guidance.
        null: tokens (1, N, D) of a picture of zeros, what guidance contrasts with.
    """

    accepts = STREAM

    def __init__(self, pipeline: Any, text: Tensor, null: Tensor) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.text = text
        self.null = null

    def generate(
        self,
        stream: TokenStream,
        *,
        seed: int,
        progress: ProgressCallback | None = None,
        steps: int = 50,
        guidance: float = 7.5,
    ) -> list[Asset]:
        """One picture per batch element; element k draws its noise from `seed + k`.

        `guidance` 1 is off. Defaults are those of the pipeline.

        Raises:
            GenerationError: a stage produced numbers that are not finite.
        """
        pipeline = self.pipeline

        def paint(tokens: Tensor, noise: torch.Generator) -> Asset:
            # The pipeline splits off the null condition only where it guides.
            given = torch.cat([self.null.to(tokens), tokens]) if guidance > 1 else tokens
            with reported("picture", pipeline.unet, pipeline.scheduler, progress):
                made = pipeline(
                    prompt_embeds=self.text.to(tokens),
                    negative_prompt_embeds=self.text.to(tokens),
                    ip_adapter_image_embeds=[given[:, None]],  # (2, 1, N, D): one picture
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=noise,
                    output_type="np",
                )
            return as_picture("picture", made.images[0])

        return one_by_one(self.accepts, stream, pipeline.unet, seed, paint)


@torch.no_grad()
def conditions_of_nothing(pipeline: Any) -> tuple[Tensor, Tensor]:
    """Embeddings (1, L, C) of an empty prompt, and tokens (1, N, D) of a picture of zeros.

    Both by the pipeline's own methods, which also say what it contrasts a picture with.
    """
    text, _ = pipeline.encode_prompt("", pipeline.device, 1, False)
    side = pipeline.image_encoder.config.image_size
    zeros = torch.zeros(1, 3, side, side)
    null, _ = pipeline.encode_image(zeros, pipeline.device, 1, output_hidden_states=True)
    return text, null


def _build(
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:  # an IPAdapter: its options have names, which the protocol's `**options` hides
    if weights == "random":
        return _random(device, dtype)
    base, adapter = loading.located(NAME, weights, FILES)

    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    place: dict[str, Any] = {"owner": NAME, "device": device, "dtype": dtype}
    texts, images = base / "text_encoder", adapter / "models" / "image_encoder"
    pipeline = StableDiffusionPipeline(
        vae=loading.model(AutoencoderKL, base / "vae", **place),
        text_encoder=load_frozen(
            CLIPTextModel, described(NAME, texts, CLIPTextConfig), texts, **place
        ),
        tokenizer=described(NAME, base / "tokenizer", CLIPTokenizer),
        unet=loading.model(UNet2DConditionModel, base / "unet", **place),
        scheduler=loading.scheduler(base / "scheduler", owner=NAME),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=load_frozen(
            CLIPVisionModelWithProjection,
            described(NAME, images, CLIPVisionConfig),
            images,
            **place,
        ),
        requires_safety_checker=False,
    )
    with loading.quiet():
        pipeline.load_ip_adapter(
            str(adapter),
            subfolder="models",
            weight_name=ADAPTER_FILE,
            local_files_only=True,
            low_cpu_mem_usage=loading.low_memory(),
        )
    loading.frozen(pipeline.unet, device, dtype)
    text, null = conditions_of_nothing(pipeline)
    # Once these are known, nothing asks the encoders again.
    pipeline.register_modules(text_encoder=None, tokenizer=None, image_encoder=None)
    return IPAdapter(pipeline, text, null)


def _random(device: str | torch.device, dtype: torch.dtype) -> IPAdapter:
    """Random networks, and zeros for what encoders would have made of nothing."""
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    with torch.device(device):
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
        add_adapter(unet, NUM_IMAGE_TOKENS)
        text = torch.zeros(TEXT_SHAPE)
        null = torch.zeros(1, STREAM.num_tokens, STREAM.groups[0].dim)
    pipeline = StableDiffusionPipeline(
        vae=loading.frozen(vae, device, dtype),
        text_encoder=None,
        tokenizer=None,
        unet=loading.frozen(unet, device, dtype),
        scheduler=PNDMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return IPAdapter(pipeline, text, null)


def add_adapter(unet: Any, num_tokens: int) -> None:
    """Put an untrained adapter of the "plus" kind into a UNet.

    Source: the resampler's sizes are those of IP-Adapter's own `IPAdapterPlus`, heads of 64.
    """
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import (
        IPAdapterPlusImageProjection,
        MultiIPAdapterImageProjection,
    )

    width = unet.config.cross_attention_dim
    processors = dict(unet.attn_processors)
    for name in processors:
        if name.endswith("attn2.processor"):
            attention = unet.get_submodule(name.removesuffix(".processor"))
            processors[name] = IPAdapterAttnProcessor2_0(
                hidden_size=attention.query_dim,
                cross_attention_dim=width,
                num_tokens=(num_tokens,),
            )
    unet.set_attn_processor(processors)
    resampler = IPAdapterPlusImageProjection(
        embed_dims=STREAM.groups[0].dim,
        output_dims=width,
        hidden_dims=width,
        heads=width // 64,
        num_queries=num_tokens,
    )
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([resampler])
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")


SPEC = GeneratorSpec(
    name=NAME,
    summary="IP-Adapter-plus on Stable Diffusion 1.5: pictures of 512 x 512 from CLIP tokens",
    build=_build,
    accepts=STREAM,
    produces="picture",
    requires=("diffusers", "transformers"),
    source=f"{ADAPTER} (arXiv:2308.06721) on {BASE}",
    license="Apache-2.0 (adapter); CreativeML Open RAIL-M (Stable Diffusion 1.5)",
    null_condition="the tokens of a picture of zeros, beside an empty text",
    image_domain="natural pictures",
)
