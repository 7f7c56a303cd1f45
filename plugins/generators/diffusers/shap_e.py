"""Shap-E (arXiv:2305.02463): CLIP ViT-L/14 tokens to a coloured mesh, with pip alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modalign import (
    GenerationError,
    GeneratorSpec,
    Mesh,
    Progress,
    TokenGroup,
    TokenStream,
    TokenStreamSpec,
)

from . import loading
from .driving import one_by_one, reported, require_finite

if TYPE_CHECKING:
    from modalign.specs import Asset, ProgressCallback

NAME = "shap-e-img2img"
REPOSITORY = "openai/shap-e-img2img"
FILES = {
    REPOSITORY: [
        *(f"{part}/{loading.CONFIG}" for part in ("prior", "shap_e_renderer")),
        *(f"{part}/{loading.WEIGHTS}" for part in ("prior", "shap_e_renderer")),
        f"scheduler/{loading.SCHEDULER_CONFIG}",
    ]
}
STREAM = TokenStreamSpec(
    space="clip-vitl14/hidden@224",
    groups=(TokenGroup(name="patches", shape=(16, 16), dim=1024),),
)
# Source: scripts/convert_shap_e_to_diffusers.py of diffusers.
PRIOR = {
    "num_attention_heads": 8,
    "attention_head_dim": 128,
    "num_layers": 24,
    "embedding_dim": 1024,
    "num_embeddings": 1024,
    "additional_embeddings": 0,
    "time_embed_act_fn": "gelu",
    "norm_in_type": "layer",
    "embedding_proj_norm_type": "layer",
    "encoder_hid_proj_type": None,
    "added_emb_type": None,
    "time_embed_dim": 4096,
    "embedding_proj_dim": 1024,
    "clip_embed_dim": 2048,
}
# Source: diffusers' tests of this pipeline; a trained copy brings its own.
SCHEDULER = {
    "beta_schedule": "exp",
    "num_train_timesteps": 1024,
    "prediction_type": "sample",
    "use_karras_sigmas": True,
    "clip_sample": True,
    "clip_sample_range": 1.0,
}
# Its box is -1..1, ours -0.5..0.5; z is up in both, as `create_pan_cameras` of diffusers looks.
BOX = 2.0


class TokensInPlace:
    """Stands where the pipeline has its image encoder, and returns what it is given.

    Args:
        network: whose device and type the tokens should have.
    """

    def __init__(self, network: Any) -> None:
        self.device = network.device
        self.dtype = network.dtype

    def __call__(self, tokens: Tensor) -> dict[str, Tensor]:
        """What `CLIPVisionModel` would have returned, (B, 1 + K, D)."""
        return {"last_hidden_state": tokens}


class ShapE:
    """Drives `ShapEImg2ImgPipeline` through the slot of its image encoder.

    The pipeline has no argument for embeddings. It calls its image encoder, drops the class token
    and conditions on the rest: with `TokensInPlace` in the slot, tokens are handed in as `image`.

    Args:
        pipeline: the stock pipeline, frozen; its image encoder is replaced.
        grid_size: samples per side of the box where the surface is looked for.
    """

    accepts = STREAM

    def __init__(self, pipeline: Any, grid_size: int = 128) -> None:
        pipeline.register_modules(image_encoder=TokensInPlace(pipeline.prior))
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.grid_size = grid_size

    @torch.no_grad()
    def generate(
        self,
        stream: TokenStream,
        *,
        seed: int,
        progress: ProgressCallback | None = None,
        steps: int = 64,
        guidance: float = 3.0,
    ) -> list[Asset]:
        """One mesh per batch element; element k draws its noise from `seed + k`.

        `guidance` 1 is off. Defaults are those of the pipeline's example.

        Raises:
            GenerationError: a stage produced nothing usable; the message names it.
        """
        pipeline = self.pipeline

        def make(tokens: Tensor, noise: torch.Generator) -> Asset:
            class_token = torch.zeros_like(tokens[:, :1])  # dropped by the pipeline
            with reported("latent", pipeline.prior, pipeline.scheduler, progress):
                made = pipeline(
                    torch.cat([class_token, tokens], dim=1),
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=noise,
                    output_type="latent",
                )
            require_finite("latent", made.images)
            renderer = pipeline.shap_e_renderer
            with emptiness_refused(renderer):
                surface = renderer.decode_to_mesh(
                    made.images, pipeline.device, grid_size=self.grid_size
                )
            if progress is not None:
                progress(Progress("mesh", 1, 1))
            return as_mesh(surface)

        return one_by_one(self.accepts, stream, pipeline.prior, seed, make)


@contextmanager
def emptiness_refused(renderer: Any) -> Iterator[None]:
    """Names the stage where the renderer, which expects a surface, would stumble over none."""

    def check(decoder: Any, arguments: Any, surface: Any) -> None:
        require_finite("signed distances", arguments[0])
        if len(surface.faces) == 0:
            raise GenerationError(
                "stage 'mesh' found no surface: the tokens describe nothing that this generator "
                "knows; try another seed, more steps, or another prompt"
            )

    handle = renderer.mesh_decoder.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()


def as_mesh(surface: Any) -> Mesh:
    """A mesh of a `MeshDecoderOutput`: in our box, facing outward, colours as displayed.

    Raises:
        GenerationError: numbers are not finite.
    """
    colors = torch.stack([surface.vertex_channels[name] for name in "RGB"], dim=1)  # (V, 3)
    require_finite("mesh", surface.verts)
    require_finite("colours", colors)
    vertices = surface.verts.double().cpu()
    faces = surface.faces.cpu()
    a, b, c = vertices[faces].unbind(dim=1)
    # The surface is closed: its volume is negative where triangles run clockwise.
    if (a * torch.linalg.cross(b, c)).sum() < 0:
        faces = faces.flip(1)
    return Mesh(
        vertices=(vertices / BOX).float().numpy(),
        faces=faces.numpy(),
        vertex_colors=srgb_from_linear(colors.float().cpu()).numpy(),
    )


def srgb_from_linear(light: Tensor) -> Tensor:
    """Displayed values of linear light, both in 0..1; undoes what the renderer does to colours.

    Source: IEC 61966-2-1.
    """
    light = light.clamp(0, 1)
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _build(
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:  # a ShapE: its options have names, which the protocol's `**options` hides
    folder = None
    if weights != "random":
        (folder,) = loading.located(NAME, weights, FILES)

    from diffusers import HeunDiscreteScheduler, PriorTransformer, ShapEImg2ImgPipeline
    from diffusers.pipelines.shap_e.renderer import ShapERenderer

    if folder is None:
        with torch.device(device):
            prior, renderer = PriorTransformer(**PRIOR), ShapERenderer()
        prior, renderer = (loading.frozen(n, device, dtype) for n in (prior, renderer))
        scheduler = HeunDiscreteScheduler(**SCHEDULER)
    else:
        place: dict[str, Any] = {"owner": NAME, "device": device, "dtype": dtype}
        prior = loading.model(PriorTransformer, folder / "prior", **place)
        renderer = loading.model(ShapERenderer, folder / "shap_e_renderer", **place)
        scheduler = loading.scheduler(folder / "scheduler", owner=NAME)
    pipeline = ShapEImg2ImgPipeline(
        prior=prior,
        image_encoder=None,
        image_processor=None,
        scheduler=scheduler,
        shap_e_renderer=renderer,
    )
    return ShapE(pipeline)


SPEC = GeneratorSpec(
    name=NAME,
    summary="Shap-E: coloured meshes from CLIP tokens, also on a CPU",
    build=_build,
    accepts=STREAM,
    produces="mesh",
    requires=("diffusers",),
    source=f"{REPOSITORY} (arXiv:2305.02463)",
    license="MIT",
    null_condition="zeros",
    image_domain="one object, on any background",
)
