"""TRELLIS as a generator: image tokens to coloured meshes.

Legend: B batch elements, S condition tokens, N voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modalign import GenerationError, Mesh, Progress, TokenStream, TokenStreamSpec

from .blocks import FlowContext
from .config import SamplerSettings, TrellisConfig
from .flexicubes import Surface, enclosed, extract_surfaces
from .loader import Models
from .sampler import TIMESTEP_SCALE, Denoiser, averaged, euler_steps, in_turn
from .sparse import Coordinates, SparseTensor
from .structure_vae import occupied

if TYPE_CHECKING:
    from modalign.specs import Asset

Report = Callable[[Progress], None] | None


class Trellis:
    """Occupied voxels from a condition, a latent at each of them, a mesh from the latents.

    Args:
        models: the four networks, frozen.
        config: how to sample.
        accepts: the stream it consumes; its groups side by side are the condition.
    """

    def __init__(self, models: Models, config: TrellisConfig, accepts: TokenStreamSpec) -> None:
        self.models = models
        self.config = config
        self.accepts = accepts

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return self.models.structure_flow.input_layer.weight.device

    def generate(
        self,
        stream: TokenStream,
        *,
        seed: int,
        progress: Report = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> list[Asset]:
        """One mesh per batch element of `stream`; element k draws its noise from `seed + k`.

        Elements are made one after the other, so a result never depends on its neighbours.

        Args:
            stream: tokens (B, K, D) per group.
            seed: of the first element.
            progress: called after every step of every stage.
            steps: of both flow models; the pipeline's own numbers if None.
            guidance: of both flow models, 0 is off; the pipeline's own if None.

        Raises:
            GenerationError: a stage produced nothing usable; the message names it.
        """
        condition = self.accepts.pack(stream).to(self.device, torch.float32)  # (B, S, C)
        require_finite("condition", condition)
        return [
            self.generate_one(
                condition[k : k + 1], seed=seed + k, progress=progress, steps=steps,
                guidance=guidance,
            )
            for k in range(len(condition))
        ]  # fmt: skip

    @torch.no_grad()
    def generate_one(
        self,
        conditions: Tensor,
        *,
        seed: int,
        progress: Report = None,
        steps: int | None = None,
        guidance: float | None = None,
        combine: Callable[[list[Denoiser]], Denoiser] = in_turn,
    ) -> Mesh:
        """One mesh from one or several conditions (B, S, C) of the same object.

        Several conditions are combined by `combine`: `in_turn` or `averaged`. Noise is drawn on
        the CPU, voxels first, so that a seed means the same on every device.

        Raises:
            GenerationError: a stage produced nothing usable; the message names it.
        """
        generator = torch.Generator().manual_seed(seed)
        structure = self.config.structure.override(steps=steps, guidance=guidance)
        latent = self.config.latent.override(steps=steps, guidance=guidance)
        at = self.sample_structure(conditions, structure, generator, progress, combine)
        feats = self.sample_latent(conditions, at, latent, generator, progress, combine)
        return as_mesh(self.decode(feats, progress))

    def sample_structure(
        self,
        conditions: Tensor,
        settings: SamplerSettings,
        generator: torch.Generator,
        progress: Report = None,
        combine: Callable[[list[Denoiser]], Denoiser] = in_turn,
    ) -> Coordinates:
        """Occupied voxels of one object.

        Raises:
            GenerationError: no voxel is occupied, or too many are.
        """
        model = self.models.structure_flow
        shape = (1, model.in_channels, *(model.resolution,) * 3)
        noise = torch.randn(shape, generator=generator).to(self.device)

        def denoiser(context: FlowContext) -> Denoiser:
            def denoise(x: Tensor, t: float, guided: bool) -> tuple[Tensor, Tensor | None]:
                # The unconditional branch rides along as a second batch element without context.
                copies = x.repeat(2 if guided else 1, 1, 1, 1, 1)
                v = model(copies, _timesteps(t, len(copies), x.device), context)
                return v[:1], v[1:] if guided else None

            return denoise

        stage = "sparse structure"
        each = [denoiser(model.read(conditions[k : k + 1])) for k in range(len(conditions))]
        x = self._sample(stage, combine(each), noise, settings, progress)
        logits = require_finite("sparse-structure decoder", self.models.structure_decoder(x))
        coords = occupied(logits)
        if len(coords) == 0:
            raise GenerationError(
                "stage 'sparse structure' found no occupied voxel: the tokens describe nothing "
                "that this generator knows; try another seed, more steps, or another prompt"
            )
        if len(coords) > self.config.max_voxels:
            raise GenerationError(
                f"stage 'sparse structure' found {len(coords)} occupied voxels, more than the "
                f"limit of {self.config.max_voxels}; try another seed or prompt, or raise "
                "max_voxels if memory allows"
            )
        return Coordinates(coords)

    def sample_latent(
        self,
        conditions: Tensor,
        at: Coordinates,
        settings: SamplerSettings,
        generator: torch.Generator,
        progress: Report = None,
        combine: Callable[[list[Denoiser]], Denoiser] = in_turn,
    ) -> SparseTensor:
        """The structured latent at the voxels of one object, in the scale its decoder expects."""
        model = self.models.latent_flow
        noise = torch.randn(len(at), model.in_channels, generator=generator).to(self.device)

        def denoiser(context: FlowContext) -> Denoiser:
            def denoise(x: Tensor, t: float, guided: bool) -> tuple[Tensor, Tensor | None]:
                places = at.repeated(2 if guided else 1)
                copies = SparseTensor(places, x.repeat(places.batch_size, 1))
                t_copies = _timesteps(t, places.batch_size, x.device)
                v = model(copies, t_copies, context).feats
                return v[: len(x)], v[len(x) :] if guided else None

            return denoise

        each = [denoiser(model.read(conditions[k : k + 1])) for k in range(len(conditions))]
        x = self._sample("structured latent", combine(each), noise, settings, progress)
        mean = x.new_tensor(self.models.normalization.mean)
        std = x.new_tensor(self.models.normalization.std)
        return SparseTensor(at, x * std + mean)

    def decode(self, latent: SparseTensor, progress: Report = None) -> Surface:
        """The surface of one object.

        Raises:
            GenerationError: there is none.
        """
        decoder = self.models.mesh_decoder
        solid = enclosed(latent.at, decoder.resolution) if self.config.fill_cavities else None
        raw = decoder(latent)
        require_finite("mesh decoder", raw.feats)
        (surface,) = extract_surfaces(raw, decoder.mesh_resolution, solid)
        if len(surface.faces) == 0:
            raise GenerationError(
                "stage 'mesh decoder' produced no surface; try another seed or another prompt"
            )
        require_finite("mesh extraction", surface.vertices)
        if progress is not None:
            progress(Progress("mesh", 1, 1))
        return surface

    def _sample(
        self,
        stage: str,
        denoiser: Denoiser,
        noise: Tensor,
        settings: SamplerSettings,
        progress: Report,
    ) -> Tensor:
        x = noise
        for number, step in enumerate(euler_steps(denoiser, noise, settings), start=1):
            x = step.x
            if progress is not None:
                progress(Progress(stage, number, settings.steps))
        return require_finite(f"{stage} flow", x)


def require_finite(stage: str, x: Tensor) -> Tensor:
    """The tensor x itself, if all its numbers are finite.

    Raises:
        GenerationError: names the stage.
    """
    if not bool(torch.isfinite(x).all()):
        raise GenerationError(
            f"stage {stage!r} produced non-finite numbers; if the weights run in half precision, "
            "try float32, else check that they are not damaged"
        )
    return x


def as_mesh(surface: Surface) -> Mesh:
    """An asset of the vertices that triangles use, coloured."""
    used, faces = torch.unique(surface.faces, return_inverse=True)

    def array(x: Tensor) -> Any:
        return x.detach().float().cpu().numpy()

    return Mesh(
        vertices=array(surface.vertices[used]),
        faces=faces.cpu().numpy(),
        vertex_colors=array(surface.color[used, :3].clamp(0, 1)),
    )


def _timesteps(t: float, batch: int, device: torch.device) -> Tensor:
    return torch.full((batch,), TIMESTEP_SCALE * t, dtype=torch.float32, device=device)


__all__ = ["Trellis", "as_mesh", "averaged", "in_turn", "require_finite"]
