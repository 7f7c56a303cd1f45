"""TRELLIS as a generator: image tokens to coloured meshes.

Legend: B batch elements, S condition tokens, N voxels.
"""

from __future__ import annotations

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

from . import editing
from .blocks import FlowContext
from .config import SamplerSettings, TrellisConfig
from .encoding import Encoders, Views, encode_mesh
from .flexicubes import Surface, enclosed, extract_surfaces
from .formats import as_mesh, decoders, textured
from .models import Models
from .sampler import (
    TIMESTEP_SCALE,
    Denoiser,
    Start,
    averaged,
    euler_steps,
    in_turn,
    schedule,
)
from .sparse import Coordinates, SparseTensor
from .structure_vae import occupied

if TYPE_CHECKING:
    from modalign.specs import Asset

Report = Callable[[Progress], None] | None
Combine = Callable[[list[Denoiser]], Denoiser]
# How several conditions of one object are used.
MODES: dict[str, Combine] = {"stochastic": in_turn, "multidiffusion": averaged}


class Trellis:
    """Occupied voxels from a condition, a latent at each of them, an asset from the latents.

    Networks are loaded when they are used, see `Models`: whatever is made passes one stage before
    the next is loaded. One call at a time.

    Args:
        models: the networks, frozen.
        config: how to sample.
        accepts: the stream it consumes; its groups side by side are the condition.
        make_null: the stream (1, K, D) that guidance contrasts with; zeros if None.
    """

    load_encoders: Callable[[], Encoders] | None = None  # what `encoders` comes from

    def __init__(
        self,
        models: Models,
        config: TrellisConfig,
        accepts: TokenStreamSpec,
        make_null: Callable[[], TokenStream] | None = None,
    ) -> None:
        self.models = models
        self.config = config
        self.accepts = accepts
        self._make_null = make_null

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return self.models.device

    @cached_property
    def null(self) -> Tensor | None:
        """What guidance contrasts a condition with, (1, S, C); None stands for zeros.

        Raises:
            WeightsError: the encoder that makes it is not here.
        """
        return None if self._make_null is None else self.pack(self._make_null())

    def generate(
        self,
        stream: TokenStream,
        *,
        seed: int,
        progress: Report = None,
        steps: int | None = None,
        guidance: float | None = None,
        format: str = "mesh",
        mode: str | None = None,
        null: TokenStream | None = None,
    ) -> list[Asset]:
        """One asset per batch element of `stream`; element k draws its noise from `seed + k`.

        No element depends on its neighbours. With a `mode` all elements are of one object, and one
        asset is made.

        Args:
            stream: tokens (B, K, D) per group.
            seed: of the first element.
            progress: called after every step of every stage, over all elements.
            steps: of both flow models; the pipeline's own numbers if None.
            guidance: of both flow models, 0 is off; the pipeline's own if None.
            format: "mesh"; of pipelines with these decoders "gaussians", "radiance-field" and
                "textured-mesh".
            mode: "stochastic" reads the elements in turn, step by step; "multidiffusion" averages
                over them.
            null: one element that guidance leads away from; by default the generator's own.

        Raises:
            ValueError: no format or mode has that name, or a stream has another layout.
            GenerationError: this pipeline lacks the format, or a stage produced nothing usable; the
                message names it.
            WeightsError: a network's files are missing or damaged.
        """
        self.models.require(*decoders(format, self.models.roles))
        options: dict[str, Any] = {"steps": steps, "guidance": guidance, "progress": progress}
        latents = self.latents(stream, seed=seed, mode=mode, null=null, **options)
        return self.assets(latents, format, progress)

    def latents(
        self,
        stream: TokenStream,
        *,
        seed: int,
        progress: Report = None,
        steps: int | None = None,
        guidance: float | None = None,
        mode: str | None = None,
        null: TokenStream | None = None,
    ) -> list[SparseTensor]:
        """The latents that `assets` decodes, to one format or several; see `generate`."""
        if mode is not None and mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
        condition = self.pack(stream)
        away = None if null is None else self.pack(null)
        if away is not None and len(away) != 1:
            raise ValueError(f"null must be a stream of one element, got {len(away)}")
        return self._sample_all(
            [condition] if mode else list(condition.split(1)),
            seed=seed,
            progress=progress,
            steps=steps,
            guidance=guidance,
            combine=MODES[mode] if mode else in_turn,
            null=away,
        )

    @torch.no_grad()
    def assets(
        self, latents: Sequence[SparseTensor], format: str = "mesh", progress: Report = None
    ) -> list[Asset]:
        """Each latent as an asset of a format, see `generate`.

        Raises:
            GenerationError: this pipeline lacks the format, or there is no surface.
        """
        decoders(format, self.models.roles)
        if format == "textured-mesh":
            splats = self.assets(latents, "gaussians", progress)
            meshes = self.assets(latents, "mesh", progress)
            return [textured(*both, progress) for both in zip(meshes, splats, strict=True)]
        shares = [_share(progress, k, len(latents)) for k in range(len(latents))]
        pairs = list(zip(latents, shares, strict=True))
        if format == "mesh":
            return [as_mesh(self.decode(latent, share)) for latent, share in pairs]
        return [self._decode_features(format, latent, share) for latent, share in pairs]

    def generate_one(
        self,
        conditions: Tensor,
        *,
        seed: int,
        progress: Report = None,
        steps: int | None = None,
        guidance: float | None = None,
        combine: Combine = in_turn,
    ) -> Asset:
        """One mesh from one or several conditions (B, S, C) of the same object.

        Several conditions are combined by `combine`: `in_turn` or `averaged`. Noise is drawn on
        the CPU, voxels first, so that a seed means the same on every device.

        Raises:
            GenerationError: a stage produced nothing usable; the message names it.
        """
        latents = self._sample_all(
            [conditions],
            seed=seed,
            progress=progress,
            steps=steps,
            guidance=guidance,
            combine=combine,
        )
        return self.assets(latents, progress=progress)[0]

    @torch.no_grad()
    def _sample_all(
        self,
        objects: Sequence[Tensor],
        *,
        seed: int,
        progress: Report,
        steps: int | None,
        guidance: float | None,
        combine: Combine,
        null: Tensor | None = None,
    ) -> list[SparseTensor]:
        """The latent of every object, all of them through one stage and then through the next."""
        structure = self.config.structure.override(steps=steps, guidance=guidance)
        latent = self.config.latent.override(steps=steps, guidance=guidance)
        if null is None and (structure.cfg_strength or latent.cfg_strength):
            null = self.null  # before a network is loaded: making it may take one of its own
        count = range(len(objects))
        draws = [torch.Generator().manual_seed(seed + k) for k in count]
        shares = [_share(progress, k, len(objects)) for k in count]
        grids = [
            self.sample_grid(objects[k], structure, draws[k], shares[k], combine, null=null)
            for k in count
        ]
        places = [self.decode_structure(grid) for grid in grids]
        return [
            self.sample_latent(
                objects[k], places[k], latent, draws[k], shares[k], combine, null=null
            )
            for k in count
        ]

    def sample_structure(
        self,
        conditions: Tensor,
        settings: SamplerSettings,
        generator: torch.Generator,
        progress: Report = None,
        combine: Combine = in_turn,
        null: Tensor | None = None,
        start: Start | None = None,
    ) -> Coordinates:
        """Occupied voxels of one object; `start` is a structure latent, see `editing`.

        Raises:
            GenerationError: no voxel is occupied, or too many are.
        """
        return self.decode_structure(
            self.sample_grid(conditions, settings, generator, progress, combine, null, start)
        )

    def sample_grid(
        self,
        conditions: Tensor,
        settings: SamplerSettings,
        generator: torch.Generator,
        progress: Report = None,
        combine: Combine = in_turn,
        null: Tensor | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """The latent grid (1, channels, R, R, R) that `decode_structure` turns into voxels."""
        model = self.models.structure_flow
        shape = (1, model.in_channels, *(model.resolution,) * 3)
        noise = torch.randn(shape, generator=generator).to(self.device)

        def denoiser(condition: Tensor) -> Denoiser:
            alone, both = self._contexts(model, condition, settings, null)

            def denoise(x: Tensor, t: float, guided: bool) -> tuple[Tensor, Tensor | None]:
                # The unconditional branch rides along as a second batch element.
                copies = x.repeat(2 if guided else 1, 1, 1, 1, 1)
                v = model(copies, _timesteps(t, len(copies), x.device), both if guided else alone)
                return v[:1], v[1:] if guided else None

            return denoise

        each = [denoiser(condition) for condition in conditions.split(1)]
        return self._sample("sparse structure", combine(each), noise, settings, progress, start)

    def decode_structure(self, grid: Tensor) -> Coordinates:
        """Occupied voxels of a latent grid (1, channels, R, R, R).

        Raises:
            GenerationError: no voxel is occupied, or too many are.
        """
        logits = require_finite("sparse-structure decoder", self.models.structure_decoder(grid))
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
        combine: Combine = in_turn,
        null: Tensor | None = None,
        start: Start | None = None,
    ) -> SparseTensor:
        """The structured latent at the voxels of one object, in the scale its decoder expects.

        `start` is in the scale of the flow model, see `editing`.
        """
        model = self.models.latent_flow
        noise = torch.randn(len(at), model.in_channels, generator=generator).to(self.device)

        def denoiser(condition: Tensor) -> Denoiser:
            alone, both = self._contexts(model, condition, settings, null)

            def denoise(x: Tensor, t: float, guided: bool) -> tuple[Tensor, Tensor | None]:
                places = at.repeated(2 if guided else 1)
                copies = SparseTensor(places, x.repeat(places.batch_size, 1))
                t_copies = _timesteps(t, places.batch_size, x.device)
                v = model(copies, t_copies, both if guided else alone).feats
                return v[: len(x)], v[len(x) :] if guided else None

            return denoise

        each = [denoiser(condition) for condition in conditions.split(1)]
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

    def _decode_features(self, format: str, latent: SparseTensor, progress: Report) -> Any:
        splats = format == "gaussians"
        decoder = self.models.gaussian_decoder if splats else self.models.radiance_field_decoder
        raw = decoder(latent)
        require_finite(f"{format} decoder", raw.feats)
        (made,) = decoder.gaussians(raw) if splats else decoder.fields(raw)
        if progress is not None:
            progress(Progress(format, 1, 1))
        return made

    def pack(self, stream: TokenStream) -> Tensor:
        """The stream's groups side by side (B, S, C): the condition of each element."""
        condition = self.accepts.pack(stream).to(self.device, torch.float32)  # (B, S, C)
        return require_finite("condition", condition)

    def _contexts(
        self, model: Any, condition: Tensor, settings: SamplerSettings, null: Tensor | None
    ) -> tuple[FlowContext, FlowContext]:
        """What `model` reads in a step without guidance, and in a guided one."""
        alone = model.read(condition)
        if null is None and settings.cfg_strength != 0:
            null = self.null
        # A second batch element without context is an all-zero one, which costs nothing.
        return alone, alone if null is None else model.read(torch.cat([condition, null]))

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

    # What is done with the stages beside generating.
    variants = editing.variants
    edit = editing.edit
    generate_mixed = editing.generate_mixed


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


def _share(progress: Report, index: int, count: int) -> Report:
    """Progress of object `index` as a part of that of `count` objects."""
    if progress is None or count == 1:
        return progress
    return lambda part: progress(
        Progress(part.stage, index * part.total + part.step, count * part.total)
    )


def _timesteps(t: float, batch: int, device: torch.device) -> Tensor:
    return torch.full((batch,), TIMESTEP_SCALE * t, dtype=torch.float32, device=device)


__all__ = ["Trellis", "as_mesh", "averaged", "in_turn", "require_finite"]
