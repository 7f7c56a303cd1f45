"""The files that describe a TRELLIS pipeline, as the official repositories lay them out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Microsoft's pipeline files hold further keys (text and image encoders) that are not ours to read.
_LENIENT = ConfigDict(frozen=True, extra="ignore")
_STRICT = ConfigDict(frozen=True, extra="forbid")


class SamplerSettings(BaseModel):
    """How one stage samples.

    Attributes:
        steps: Euler steps.
        cfg_strength: g in (1 + g) v - g v_without; 0 is no guidance.
        cfg_interval: times, 1 = noise, between which guidance applies, both included.
        rescale_t: above 1, steps crowd near the noise.
        sigma_min: of the path, see `sampler`.
    """

    model_config = _STRICT

    steps: int = Field(default=25, ge=1)
    cfg_strength: float = Field(default=5.0, ge=0)
    cfg_interval: tuple[float, float] = (0.5, 1.0)
    rescale_t: float = Field(default=3.0, gt=0)
    sigma_min: float = Field(default=1e-5, ge=0, lt=1)

    def override(self, *, steps: int | None, guidance: float | None) -> SamplerSettings:
        """These settings with another number of steps or another cfg_strength."""
        changes = {"steps": steps, "cfg_strength": guidance}
        return SamplerSettings.model_validate(
            self.model_dump() | {key: value for key, value in changes.items() if value is not None}
        )


class SamplerEntry(BaseModel):
    """A sampler as pipeline.json writes it: constructor arguments and defaults apart."""

    model_config = _LENIENT

    name: str = "FlowEulerGuidanceIntervalSampler"
    args: dict[str, Any] = {}
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_known(self) -> SamplerEntry:
        self.settings()
        return self

    def settings(self) -> SamplerSettings:
        """Both together."""
        return SamplerSettings.model_validate(self.args | self.params)


class Normalization(BaseModel):
    """Mean and standard deviation of every channel of the structured latent."""

    model_config = _STRICT

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _same_length(self) -> Normalization:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means but {len(self.std)} standard deviations")
        return self


class PipelineArgs(BaseModel):
    """The models of a pipeline, by role, and how it samples.

    Attributes:
        fill_cavities: see `TrellisConfig`; our own, absent from the official files.
        slat_features: what the latent's encoder reads, see `encoding`; our own, too.
    """

    model_config = _LENIENT

    models: dict[str, str]
    sparse_structure_sampler: SamplerEntry
    slat_sampler: SamplerEntry
    slat_normalization: Normalization
    fill_cavities: bool = False
    slat_features: Literal["views", "distances"] = "views"


class PipelineFile(BaseModel):
    """pipeline.json."""

    model_config = _LENIENT

    name: str
    args: PipelineArgs


class ModelFile(BaseModel):
    """The .json beside a model's .safetensors: its class and arguments."""

    model_config = _STRICT

    name: str
    args: dict[str, Any]


class TrellisConfig(BaseModel):
    """What a user may set about generation.

    Attributes:
        structure: sampling of the sparse structure.
        latent: sampling of the structured latent.
        fill_cavities: treat space that occupied voxels enclose as inside. A decoder trained on
            signed distances then makes no inner wall where its voxels end; the released one was
            trained on pictures, knows no inside, and needs it off.
        max_voxels: larger structures are refused before they exhaust memory; the surface of a
            real object fills up to about 40,000 of the 64^3 voxels of the released models.
    """

    model_config = _STRICT

    structure: SamplerSettings
    latent: SamplerSettings
    fill_cavities: bool = False
    max_voxels: int = Field(default=100_000, ge=1)
