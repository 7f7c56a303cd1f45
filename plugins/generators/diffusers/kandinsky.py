"""Kandinsky 2.2 (arXiv:2310.03502): one projected CLIP ViT-bigG/14 vector to a picture."""

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

NAME = "kandinsky-2.2"
DECODER = "kandinsky-community/kandinsky-2-2-decoder"
PRIOR = "kandinsky-community/kandinsky-2-2-prior"  # its image encoder makes the null condition
FILES = {
    DECODER: [
        *(f"{part}/{loading.CONFIG}" for part in ("unet", "movq")),
        *(f"{part}/{loading.WEIGHTS}" for part in ("unet", "movq")),
        f"scheduler/{loading.SCHEDULER_CONFIG}",
    ],
    PRIOR: ["image_encoder/config.json", "image_encoder/model.safetensors"],
}
STREAM = TokenStreamSpec(
    space="clip-vitbigg14/projected@224", groups=(TokenGroup(name="cls", shape=(1,), dim=1280),)
)


class Kandinsky:
    """Drives `KandinskyV22Pipeline` by its `image_embeds`.

    Args:
        pipeline: the stock pipeline, frozen.
        null: the projected vector (1, D) of a picture of zeros, what guidance contrasts with.
        size: pixels per side.
    """

    accepts = STREAM

    def __init__(self, pipeline: Any, null: Tensor, size: int = 512) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.null = null
        self.size = size

    def generate(
        self,
        stream: TokenStream,
        *,
        seed: int,
        progress: ProgressCallback | None = None,
        steps: int = 50,
        guidance: float = 4.0,
    ) -> list[Asset]:
        """One picture per batch element; element k draws its noise from `seed + k`.

        `guidance` 1 is off. Defaults are those of the pipeline and of its example.

        Raises:
            GenerationError: a stage produced numbers that are not finite.
        """
        pipeline = self.pipeline

        def paint(tokens: Tensor, noise: torch.Generator) -> Asset:
            with reported("picture", pipeline.unet, pipeline.scheduler, progress):
                made = pipeline(
                    image_embeds=tokens[:, 0],  # (1, D)
                    negative_image_embeds=self.null.to(tokens),
                    height=self.size,
                    width=self.size,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=noise,
                    output_type="np",
                )
            return as_picture("picture", made.images[0])

        return one_by_one(self.accepts, stream, pipeline.unet, seed, paint)


@torch.no_grad()
def null_embedding(image_encoder: Any) -> Tensor:
    """The projected vector (1, D) of a picture of zeros, which the decoder was trained to drop to.

    Source: `get_zero_embed` of diffusers' KandinskyV22PriorPipeline.
    """
    side = image_encoder.config.image_size
    zeros = torch.zeros(1, 3, side, side, device=image_encoder.device, dtype=image_encoder.dtype)
    found: Tensor = image_encoder(zeros).image_embeds
    return found


def _build(
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:  # a Kandinsky: its options have names, which the protocol's `**options` hides
    if weights == "random":
        # Sources at hand disagree about the widths of its network.
        loading.refuse_random(NAME, DECODER, "the configuration of its network")
    decoder, prior = loading.located(NAME, weights, FILES)

    from diffusers import KandinskyV22Pipeline, UNet2DConditionModel, VQModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    place: dict[str, Any] = {"owner": NAME, "device": device, "dtype": dtype}
    folder = prior / "image_encoder"
    config = described(NAME, folder, CLIPVisionConfig)
    null = null_embedding(load_frozen(CLIPVisionModelWithProjection, config, folder, **place))
    pipeline = KandinskyV22Pipeline(
        unet=loading.model(UNet2DConditionModel, decoder / "unet", **place),
        scheduler=loading.scheduler(decoder / "scheduler", owner=NAME),
        movq=loading.model(VQModel, decoder / "movq", **place),
    )
    return Kandinsky(pipeline, null)


SPEC = GeneratorSpec(
    name=NAME,
    summary="Kandinsky 2.2: pictures of 512 x 512 from one projected CLIP vector",
    build=_build,
    accepts=STREAM,
    produces="picture",
    requires=("diffusers", "transformers"),
    source=f"{DECODER} (arXiv:2310.03502)",
    license="Apache-2.0",
    null_condition="the projected vector of a picture of zeros",
    image_domain="natural pictures",
)
