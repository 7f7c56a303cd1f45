"""TRELLIS.2 as a generator: image tokens to meshes with a material.

Legend: B batch elements, S condition tokens, N voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from modalign_plugins.generators.trellis.blocks import FlowContext
from modalign_plugins.generators.trellis.config import Normalization
from modalign_plugins.generators.trellis.generator import require_finite
from modalign_plugins.generators.trellis.sampler import TIMESTEP_SCALE
from modalign_plugins.generators.trellis.sparse import Coordinates, SparseTensor
from modalign_plugins.generators.trellis.structure_vae import occupied
from torch import Tensor
from torch.nn.functional import max_pool3d

from modalign import GenerationError, Progress, TokenStream, TokenStreamSpec

from .config import SamplerSettings, Trellis2Config
from .dual_grid import extract_faces
from .flow import LatentFlowModel, StructureFlowModel
from .loader import Networks
from .material import MaterialMesh, sample_material
from .sampler import Denoiser, euler_steps

if TYPE_CHECKING:
    from modalign.specs import Asset

Report = Callable[[Progress], None] | None
POOLING = 2  # the '512' pipeline reads the 64^3 structure at 32^3


class Trellis2:
    """Occupied voxels from a condition, a shape at each of them, a texture on the shape.

    Stages run one after the other for the whole batch, and a network is held only while its stage
    runs; elements within a stage are made one by one, so a result never depends on its neighbours.

    Args:
        networks: how to get the six networks.
        config: how to sample.
        accepts: the stream it consumes; its groups side by side are the condition.
        device: where the networks run.
    """

    def __init__(
        self,
        networks: Networks,
        config: Trellis2Config,
        accepts: TokenStreamSpec,
        device: str | torch.device = "cpu",
    ) -> None:
        self.networks = networks
        self.config = config
        self.accepts = accepts
        self.device = torch.device(device)

    @torch.no_grad()
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

        Noise is drawn on the CPU, structure first, then shape, then texture, so that a seed means
        the same on every device.

        Args:
            stream: tokens (B, K, D) per group.
            seed: of the first element.
            progress: called after every step of every stage; a stage counts the whole batch.
            steps: of all three flow models; the pipeline's own numbers if None.
            guidance: of structure and shape, 1 is off; the pipeline's own if None. The texture
                keeps its own.

        Raises:
            GenerationError: a stage produced nothing usable; the message names it.
        """
        conditions = self.accepts.pack(stream).to(self.device, torch.float32)  # (B, S, C)
        require_finite("condition", conditions)
        draws = [torch.Generator().manual_seed(seed + k) for k in range(len(conditions))]
        config = self.config
        structure = config.structure.override(steps=steps, guidance=guidance)
        places, side = self.sample_structures(conditions, structure, draws, progress)
        shapes = self.sample_latents(
            "shape latent",
            self.networks.shape_flow(),
            conditions,
            places,
            config.shape.override(steps=steps, guidance=guidance),
            draws,
            progress,
        )
        textures = self.sample_latents(
            "texture latent",
            self.networks.texture_flow(),
            conditions,
            places,
            config.texture.override(steps=steps),
            draws,
            progress,
            known=shapes,
        )
        return self.decode(places, side, shapes, textures, progress)

    def sample_structures(
        self,
        conditions: Tensor,
        settings: SamplerSettings,
        draws: Sequence[torch.Generator],
        progress: Report = None,
    ) -> tuple[list[Coordinates], int]:
        """Occupied voxels of each object, and how many of them span its cube.

        Raises:
            GenerationError: no voxel is occupied.
        """
        flow = self.networks.structure_flow()
        noises = [
            torch.randn((1, flow.in_channels, *(flow.resolution,) * 3), generator=draw)
            for draw in draws
        ]
        denoisers = (
            structure_denoiser(flow, flow.read(conditions[k : k + 1]))
            for k in range(len(conditions))
        )
        latents = self._sample("sparse structure", denoisers, noises, settings, progress)
        del flow, denoisers
        decoder = self.networks.structure_decoder()
        places = []
        for latent in latents:
            logits = require_finite("sparse-structure decoder", decoder(latent))
            coords = occupied(max_pool3d(logits, POOLING))
            if len(coords) == 0:
                raise GenerationError(
                    "stage 'sparse structure' found no occupied voxel: the tokens describe nothing "
                    "that this generator knows; try another seed, more steps, or another prompt"
                )
            places.append(Coordinates(coords))
        return places, logits.shape[-1] // POOLING

    def sample_latents(
        self,
        stage: str,
        flow: LatentFlowModel,
        conditions: Tensor,
        places: Sequence[Coordinates],
        settings: SamplerSettings,
        draws: Sequence[torch.Generator],
        progress: Report = None,
        known: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """A latent (N, C) of each object at its voxels, as the flow model scales it.

        `known` (N, C) per object is what the model reads beside the noise.
        """
        noises = [
            torch.randn(len(at), flow.out_channels, generator=draw)
            for at, draw in zip(places, draws, strict=True)
        ]
        denoisers = (
            latent_denoiser(
                flow, flow.read(conditions[k : k + 1]), at, None if known is None else known[k]
            )
            for k, at in enumerate(places)
        )
        return self._sample(stage, denoisers, noises, settings, progress)

    def decode(
        self,
        places: Sequence[Coordinates],
        side: int,
        shapes: Sequence[Tensor],
        textures: Sequence[Tensor],
        progress: Report = None,
    ) -> list[Asset]:
        """A mesh of each object from its latents at voxels of which `side` span its cube.

        The two decoders are held together: of the second one's voxels the first one decides.

        Raises:
            GenerationError: there is no surface, or it has too many voxels.
        """
        shape_decoder, texture_decoder = (
            self.networks.shape_decoder(),
            self.networks.texture_decoder(),
        )
        resolution = side * shape_decoder.factor
        meshes: list[Asset] = []
        for at, shape, texture in zip(places, shapes, textures, strict=True):
            latent = scaled(SparseTensor(at, shape), self.config.shape_normalization)
            voxels, subdivisions = shape_decoder(latent, self.config.max_voxels)
            require_finite("shape decoder", voxels.feats)
            latent = scaled(SparseTensor(at, texture), self.config.texture_normalization)
            material = texture_decoder(latent, subdivisions)
            require_finite("texture decoder", material.feats)
            meshes.append(as_mesh(voxels, material, resolution))
            if progress is not None:
                progress(Progress("mesh", len(meshes), len(places)))
        return meshes

    def _sample(
        self,
        stage: str,
        denoisers: Iterable[Denoiser],
        noises: Sequence[Tensor],
        settings: SamplerSettings,
        progress: Report,
    ) -> list[Tensor]:
        samples, done, total = [], 0, len(noises) * settings.steps
        for denoiser, noise in zip(denoisers, noises, strict=True):
            x = noise.to(self.device)
            for point in euler_steps(denoiser, x, settings):
                x, done = point, done + 1
                if progress is not None:
                    progress(Progress(stage, done, total))
            samples.append(require_finite(f"{stage} flow", x))
        return samples


def structure_denoiser(flow: StructureFlowModel, context: FlowContext) -> Denoiser:
    """Velocities of one dense latent grid (1, C, R, R, R)."""

    def denoise(x: Tensor, t: float, guided: bool) -> tuple[Tensor, Tensor | None]:
        # The unconditional branch rides along as a second batch element without context.
        copies = x.repeat(2 if guided else 1, 1, 1, 1, 1)
        v = flow(copies, _timesteps(t, len(copies), x), context)
        return v[:1], v[1:] if guided else None

    return denoise


def latent_denoiser(
    flow: LatentFlowModel, context: FlowContext, at: Coordinates, known: Tensor | None
) -> Denoiser:
    """Velocities of one object's voxel features (N, C)."""

    def denoise(x: Tensor, t: float, guided: bool) -> tuple[Tensor, Tensor | None]:
        number = 2 if guided else 1
        copies = SparseTensor(at.repeated(number), x.repeat(number, 1))
        beside = None if known is None else known.repeat(number, 1)
        v = flow(copies, _timesteps(t, number, x), context, beside).feats
        return v[: len(x)], v[len(x) :] if guided else None

    return denoise


def _timesteps(t: float, number: int, x: Tensor) -> Tensor:
    return torch.full((number,), TIMESTEP_SCALE * t, dtype=torch.float32, device=x.device)


def scaled(latent: SparseTensor, by: Normalization) -> SparseTensor:
    """A latent as its decoder expects it."""
    mean, std = latent.feats.new_tensor(by.mean), latent.feats.new_tensor(by.std)
    return latent.replace(latent.feats * std + mean)


def as_mesh(voxels: SparseTensor, material: SparseTensor, resolution: int) -> MaterialMesh:
    """The surface of one object's shape (N, 7), in the material (N, 6) of the same voxels.

    Raises:
        GenerationError: there is no surface.
    """
    grid, faces = extract_faces(voxels)
    if len(faces) == 0:
        raise GenerationError(
            "stage 'shape decoder' produced no surface; try another seed or another prompt"
        )
    used, faces = torch.unique(faces, return_inverse=True)
    vertices = (voxels.at.coords[used, 1:] + grid.offset[used]) / resolution - 0.5
    surface = material.replace((material.feats.float() * 0.5 + 0.5).clamp(0, 1))
    of_vertex = sample_material(surface, used, grid.offset[used]).clamp(0, 1)  # (V, 6)

    def array(x: Tensor) -> Any:
        return x.detach().float().cpu().numpy()

    return MaterialMesh(
        vertices=array(vertices),
        faces=faces.cpu().numpy(),
        vertex_colors=array(of_vertex[:, :3]),
        metallic=array(of_vertex[:, 3]),
        roughness=array(of_vertex[:, 4]),
        alpha=array(of_vertex[:, 5]),
    )
