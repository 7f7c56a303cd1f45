"""The files that describe a TRELLIS.2 pipeline, and what a user may set about generation."""

from __future__ import annotations

from typing import Any

from modalign_plugins.generators.trellis.config import Normalization
from pydantic import BaseModel, ConfigDict, Field, model_validator

# The official file holds further keys (other resolutions, encoder, background removal).
_LENIENT = ConfigDict(frozen=True, extra="ignore")
_STRICT = ConfigDict(frozen=True, extra="forbid")


class SamplerSettings(BaseModel):
    """How one stage samples.

    Attributes:
        steps: Euler steps.
        guidance_strength: g in g v + (1 - g) v_without; 1 is no guidance. It is one more than the
            number that TRELLIS calls cfg_strength.
        guidance_rescale: how far the guided guess of the data is brought back to the spread of
            the unguided one: 0 not at all, 1 wholly.
        guidance_interval: times, 1 = noise, between which guidance applies, both included.
        rescale_t: above 1, steps crowd near the noise.
        sigma_min: of the path, see `sampler`.
    """

    model_config = _STRICT

    steps: int = Field(default=12, ge=1)
    guidance_strength: float = Field(default=1.0, ge=0)
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    rescale_t: float = Field(default=1.0, gt=0)
    sigma_min: float = Field(default=1e-5, gt=0, lt=1)

    def override(self, *, steps: int | None, guidance: float | None = None) -> SamplerSettings:
        """These settings with another number of steps or another guidance_strength."""
        changes = {"steps": steps, "guidance_strength": guidance}
        return SamplerSettings.model_validate(
            self.model_dump() | {key: value for key, value in changes.items() if value is not None}
        )


class SamplerEntry(BaseModel):
    """A sampler as pipeline.json writes it: constructor arguments and defaults apart."""

    model_config = _LENIENT

    args: dict[str, Any] = {}
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_known(self) -> SamplerEntry:
        self.settings()
        return self

    def settings(self) -> SamplerSettings:
        """Both together."""
        return SamplerSettings.model_validate(self.args | self.params)


class PipelineArgs(BaseModel):
    """The models of a pipeline, by role, how it samples, and the scale of its latents."""

    model_config = _LENIENT

    models: dict[str, str]
    sparse_structure_sampler: SamplerEntry
    shape_slat_sampler: SamplerEntry
    tex_slat_sampler: SamplerEntry
    shape_slat_normalization: Normalization
    tex_slat_normalization: Normalization


class PipelineFile(BaseModel):
    """pipeline.json."""

    model_config = _LENIENT

    name: str
    args: PipelineArgs


class Trellis2Config(BaseModel):
    """What a user may set about generation.

    Attributes:
        structure: sampling of the sparse structure.
        shape: sampling of the shape's latent.
        texture: sampling of the texture's latent.
        shape_normalization: mean and standard deviation of the shape's latent.
        texture_normalization: the same of the texture's.
        max_voxels: of the finest grid; larger objects are refused before they exhaust memory.
            Their table of neighbours alone takes 108 bytes a voxel. The surface of a sphere that
            fills the 512^3 grid has 1.5 times its area, 1.2 million.
    """

    model_config = _STRICT

    structure: SamplerSettings
    shape: SamplerSettings
    texture: SamplerSettings
    shape_normalization: Normalization
    texture_normalization: Normalization
    max_voxels: int = Field(default=8_000_000, ge=1)

    @classmethod
    def of(cls, pipeline: PipelineFile) -> Trellis2Config:
        """What a pipeline.json says."""
        args = pipeline.args
        return cls(
            structure=args.sparse_structure_sampler.settings(),
            shape=args.shape_slat_sampler.settings(),
            texture=args.tex_slat_sampler.settings(),
            shape_normalization=args.shape_slat_normalization,
            texture_normalization=args.tex_slat_normalization,
        )
