"""TRELLIS as a generator: image tokens to coloured meshes.

Legend: B batch elements, S condition tokens, N voxels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modalign import (
    GenerationError,
    Mesh,
    Progress,
    TokenStream,
    TokenStreamSpec,
    WeightsError,
)

from .blocks import FlowContext
from .config import SamplerSettings, TrellisConfig
from .editing import Region, edit_latent
from .encoding import Encoders, Views, encode_mesh
from .flexicubes import Surface, enclosed, extract_surfaces
from .loader import Models
from .sampler import (
    TIMESTEP_SCALE,
    Denoiser,
    Start,
    averaged,
    euler_steps,
    in_turn,
    mixed,
    schedule,
)
from .sparse import Coordinates, SparseTensor
from .structure_vae import occupied
from .voxels import voxelize

if TYPE_CHECKING:
    from modalign.specs import Asset

logger = logging.getLogger(__name__)

Report = Callable[[Progress], None] | None


class Trellis:
    """Occupied voxels from a condition, a latent at each of them, a mesh from the latents.

    Args:
        models: the four networks, frozen.
        config: how to sample.
        accepts: the stream it consumes; its groups side by side are the condition.
    """

    load_encoders: Callable[[], Encoders] | None = None  # what `encoders` comes from

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
        start: Start | None = None,
    ) -> Coordinates:
        """Occupied voxels of one object; `start` is a structure latent, see `editing`.

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
        x = self._sample(stage, combine(each), noise, settings, progress, start)
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
        start: Start | None = None,
    ) -> SparseTensor:
        """The structured latent at the voxels of one object, in the scale its decoder expects.

        `start` is in the scale of the flow model, see `editing`.
        """
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
        x = self._sample("structured latent", combine(each), noise, settings, progress, start)
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
        start: Start | None = None,
    ) -> Tensor:
        x = noise if start is None else start.data  # of strength 0, which has no step
        total = len(schedule(settings, start)) - 1
        steps = euler_steps(denoiser, noise, settings, start)
        for number, step in enumerate(steps, start=1):
            x = step.x
            if progress is not None:
                progress(Progress(stage, number, total))
        return require_finite(f"{stage} flow", x)

    @cached_property
    def encoders(self) -> Encoders:
        """Both VAEs' encoders, loaded when first asked for.

        Raises:
            WeightsError: this pipeline has none, or a file of theirs is missing or damaged.
        """
        if self.load_encoders is None:
            raise WeightsError(
                "this pipeline has no encoders; build it with pretrained weights or from a folder"
            )
        return self.load_encoders()

    def encode(
        self, mesh: Mesh, *, views: Views | None = None, generator: torch.Generator | None = None
    ) -> SparseTensor:
        """A mesh as a structured latent at its voxels: what `decode` makes a mesh of.

        The mesh is centred and its longest side made 1. The latent is the encoder's mean, or a
        draw if there is a `generator`. `views` are pictures of the mesh as placed, for the released
        encoder; the mini's reads the mesh itself, which must be closed for that.

        Raises:
            ValueError: the mesh has no surface, or is not what the encoder reads.
            WeightsError: this pipeline has no encoders.
        """
        return encode_mesh(self.encoders, mesh, views=views, generator=generator)

    @torch.no_grad()
    def variants(
        self,
        stream: TokenStream,
        mesh: Mesh,
        *,
        seed: int,
        progress: Report = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> list[Mesh]:
        """The shape of `mesh` in the appearance that each element (B, K, D) of `stream` describes.

        Needs no encoder: the voxels of the mesh are kept, and only the second stage is sampled.
        The mesh may be open, but then its voxels may enclose nothing that could be filled.

        Raises:
            ValueError: the mesh has no surface.
            GenerationError: a stage produced nothing usable; the message names it.
        """
        resolution = self.models.latent_flow.resolution
        voxels = voxelize(mesh, resolution)
        at = Coordinates(voxels.at.coords.to(self.device), 1)
        if self.config.fill_cavities and voxels.open_edges and not enclosed(at, resolution).any():
            logger.warning(
                "the mesh has %d open edges and its voxels enclose nothing: its inside cannot be "
                "filled, so thick walls may come out hollow",
                voxels.open_edges,
            )
        settings = self.config.latent.override(steps=steps, guidance=guidance)
        made = []
        for k, condition in enumerate(self._conditions(stream)):
            generator = torch.Generator().manual_seed(seed + k)
            latent = self.sample_latent(condition, at, settings, generator, progress)
            made.append(as_mesh(self.decode(latent, progress)))
        return made

    def edit(
        self,
        stream: TokenStream,
        original: SparseTensor,
        *,
        seed: int,
        strength: float = 1.0,
        structure_strength: float | None = None,
        keep: Region | None = None,
        progress: Report = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> list[Mesh]:
        """An encoded object, sampled again in part under each element (B, K, D) of `stream`.

        Element k draws its noise from `seed + k`.

        Args:
            stream: tokens of what it shall become.
            original: from `encode`.
            seed: of the first element.
            strength: how much of the schedule is sampled; 0 is the original, 1 starts from noise.
            structure_strength: the same for the voxels alone; 0 keeps them. `strength` if None.
            keep: region where voxels and latents stay; see `editing.box`. The surface near its
                border may move a little, since neighbours are decoded together.
            progress: called after every step of every stage.
            steps: of both flow models; the pipeline's own numbers if None.
            guidance: of both flow models, 0 is off; the pipeline's own if None.

        Raises:
            ValueError: a strength is not within 0..1, or the region answers with something else.
            WeightsError: voxels are to be edited, and this pipeline has no encoders.
            GenerationError: a stage produced nothing usable; the message names it.
        """
        both = strength if structure_strength is None else structure_strength
        latents = [
            edit_latent(
                self, condition, original, seed=seed + k, strength=strength,
                structure_strength=both, keep=keep, progress=progress, steps=steps,
                guidance=guidance,
            )
            for k, condition in enumerate(self._conditions(stream))
        ]  # fmt: skip
        return [as_mesh(self.decode(latent, progress)) for latent in latents]

    def generate_mixed(
        self,
        streams: Sequence[TokenStream],
        weights: Sequence[float],
        *,
        seed: int,
        progress: Report = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> list[Mesh]:
        """Meshes under several conditions at once: at each step the weighted mean of velocities.

        Element k mixes element k (B, K, D) of every stream, such as one from a text and one from
        a picture, and draws its noise from `seed + k`.

        Raises:
            ValueError: weights do not sum to 1, one is negative, or streams are not as many, or
                of another batch size.
            GenerationError: a stage produced nothing usable; the message names it.
        """
        conditions = [self._conditions(stream) for stream in streams]
        if len({len(each) for each in conditions}) != 1:
            raise ValueError(
                f"streams to mix need one batch size, got {[len(each) for each in conditions]}"
            )
        return [
            self.generate_one(
                torch.cat(several), seed=seed + k, progress=progress, steps=steps,
                guidance=guidance, combine=mixed(weights),
            )
            for k, several in enumerate(zip(*conditions, strict=True))
        ]  # fmt: skip

    def _conditions(self, stream: TokenStream) -> list[Tensor]:
        """One condition (1, S, C) per batch element."""
        condition = self.accepts.pack(stream).to(self.device, torch.float32)
        require_finite("condition", condition)
        return list(condition.split(1))


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
