"""Recipes: one VLM, encoder, head, objective and generator, named, with the numbers they need."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Decay = Annotated[float, Field(gt=0, lt=1)]


class Frozen(BaseModel):
    """Immutable, and strict about names: a misspelt field is an error, not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Ref(Frozen):
    """A registered name with the options its builder takes."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class DiTConfig(Frozen):
    """Size of a `TokenStreamDiT`.

    `num_kv_heads` below `num_heads` groups the queries. The feed-forward width is
    `ceil(int(2/3 * 4 * hidden_size * ffn_dim_multiplier) / multiple_of) * multiple_of`.
    Source: facts of the released GAP3D network, section 1.1.
    """

    hidden_size: int = Field(gt=0)
    depth: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int | None = None
    multiple_of: int = Field(default=256, gt=0)
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5

    @property
    def inner_dim(self) -> int:
        """The width inside the feed-forward."""
        inner = 2 * 4 * self.hidden_size // 3
        if self.ffn_dim_multiplier is not None:
            inner = int(self.ffn_dim_multiplier * inner)
        return -(-inner // self.multiple_of) * self.multiple_of

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be divisible by num_heads "
                f"({self.num_heads})"
            )
        if (self.hidden_size // self.num_heads) % 4:
            raise ValueError(
                f"head width {self.hidden_size // self.num_heads} must be divisible by 4: "
                "two axes, each with cosine-sine pairs"
            )
        kv_heads = self.num_kv_heads or self.num_heads
        if self.num_heads % kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be divisible by num_kv_heads ({kv_heads})"
            )
        return self


class ReadingConfig(Frozen):
    """Where in the VLM the condition is read.

    `layers` is "last", the last layer after the model's final norm, or numbers of layers: 0 is
    what enters the first, k what leaves the k-th, before any norm except for the last one.
    Several are pooled into one: "mean" as they are; "learned" is a trained softmax-weighted mean
    of layer-normalised states. With `prompt_states` the prompt's own states come before those of
    the soft tokens; rows then differ in length, and the head gets a mask.
    Source: MiniGPT-3D reads its layer 15 (PointAlign); UniFusion (2510.12789) learns the pooling,
    there with a small transformer, here with one weight per layer.
    """

    layers: Literal["last"] | tuple[Annotated[int, Field(ge=0)], ...] = "last"
    pooling: Literal["mean", "learned"] = "mean"
    prompt_states: bool = False

    @model_validator(mode="after")
    def _layers_differ(self) -> Self:
        if self.layers != "last" and (not self.layers or len({*self.layers}) < len(self.layers)):
            raise ValueError(f"layers must be one or several different ones, got {self.layers}")
        if self.pooling == "learned" and (self.layers == "last" or len(self.layers) == 1):
            raise ValueError("pooling 'learned' needs at least two layers")
        return self


class FlowConfig(Frozen):
    """How noise meets data, shared by training and sampling.

    t = 0 is noise, t = 1 is data. `prediction`: what the head returns; "data" is compared in
    velocity space, divided by max(1 - t, t_floor). `shift` s maps noise level u = 1 - t to
    s u / (1 + (s - 1) u), in training and on the sampling grid. The logit of a logit-normal u has
    mean 0 and deviation `logit_std`.
    `grid` = 1000 draws t from that many equal steps (the released GAP3D); None draws it freely.
    Source: GAP3D eq. 1-5; RAE (2510.11690) for the shift; RiT (2605.21981) for data prediction;
    Stable Diffusion 3 (2403.03206), section 3.1, for logit-normal times.
    """

    prediction: Literal["velocity", "data"] = "velocity"
    time: Literal["uniform", "logit-normal"] = "uniform"
    logit_std: float = Field(default=1.0, gt=0)
    shift: float = Field(default=1.0, gt=0)
    grid: int | None = None
    t_floor: float = Field(default=0.05, gt=0, lt=1)


class SamplerConfig(Frozen):
    """How `Pipeline.align` integrates.

    `guidance` g is v_null + g (v_cond - v_null), 1 is off; it acts where the noise level 1 - t
    lies inside `guidance_interval`. `integer_time` truncates 1000 (1 - t) as the released GAP3D
    does. `project` puts every token back on its space's manifold at the end.
    """

    solver: Literal["euler", "heun"] = "euler"
    steps: int = Field(default=50, gt=0)
    guidance: float = 3.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    integer_time: bool = False
    project: bool = True


class TrainingConfig(Frozen):
    """Numbers of one training stage. Rates are per step, `warmup` a share of all steps.

    `batch_size` is global; `accumulation` cuts each process's share into that many pieces.
    `steps` None takes as many as `epochs` over the data are. `ema_decay` names one average of the
    weights, or several; the first is what a run exports. `data` are data sets as `modalign train
    --data` takes them, with mixing ratios: a second stage keeps some of the first one's against
    forgetting. `starts_from` is the recipe of the stage before.

    Weights, moments, losses and norms are float32 under every `precision`. "bfloat16" computes
    in it; "float8" also the products inside blocks, and needs torchao and a GPU that has it.
    `compile` compiles block by block; `gradient_checkpointing` recomputes blocks instead of keeping
    what they computed. More than `max_nonfinite` steps in a row whose gradient is not finite end
    the run.
    """

    lr: float = Field(default=2.8e-4, gt=0)
    min_lr: float = Field(default=1e-5, ge=0)
    warmup: float = Field(default=0.003, ge=0, lt=1)
    epochs: int = Field(default=1, gt=0)
    steps: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=2048, gt=0)
    accumulation: int = Field(default=1, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float | None = Field(default=1.0, gt=0)
    ema_decay: Decay | tuple[Decay, ...] | None = None
    precision: Literal["float32", "bfloat16", "float8"] = "float32"
    compile: bool = False
    gradient_checkpointing: bool = False
    max_nonfinite: int = Field(default=10, ge=0)
    data: tuple[str, ...] = ()
    starts_from: str | None = None

    @property
    def ema_decays(self) -> tuple[float, ...]:
        """Every decay that is averaged with, the exported one first."""
        if self.ema_decay is None:
            return ()
        return self.ema_decay if isinstance(self.ema_decay, tuple) else (self.ema_decay,)

    @model_validator(mode="after")
    def _numbers_agree(self) -> Self:
        if len({*self.ema_decays}) < len(self.ema_decays):
            raise ValueError(f"ema_decay names a decay twice: {self.ema_decays}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr ({self.min_lr}) must not be above lr ({self.lr})")
        return self


class Recipe(Frozen):
    """A named combination of registered parts. A Python value; variants are `derive(...)`.

    `vlm`, `encoder` and `generator` are registered names; `generator` may be None. `vlm_options`
    are what the VLM's builder takes besides weights, device and dtype.
    `checkpoint` names the trained weights that ship or are published for this recipe.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    vlm: str
    vlm_options: dict[str, Any] = Field(default_factory=dict)
    reading: ReadingConfig = ReadingConfig()
    encoder: str
    generator: str | None
    objective: Ref
    head: DiTConfig
    flow: FlowConfig = FlowConfig()
    sampler: SamplerConfig = SamplerConfig()
    training: TrainingConfig = TrainingConfig()
    num_soft_tokens: int = Field(default=64, gt=0)
    checkpoint: str | None = None
    summary: str = ""
    reference: str = ""

    def parts(self) -> dict[str, str]:
        """The registered names it uses, by the registry's kinds."""
        named = {
            "vlms": self.vlm,
            "encoders": self.encoder,
            "objectives": self.objective.name,
            "generators": self.generator,
        }
        return {kind: name for kind, name in named.items() if name is not None}

    def derive(self, **changes: Any) -> Recipe:
        """This recipe with some fields changed; the result is validated anew.

        A dict given for a nested config changes only the fields it names:
        `GAP3D.derive(name="fast", sampler={"steps": 10})`.

        Raises:
            pydantic.ValidationError: a field is unknown or a value does not fit; all are listed.
        """
        content = self.model_dump()
        for key, value in changes.items():
            if isinstance(value, dict) and isinstance(content.get(key), dict):
                content[key] = {**content[key], **value}
            else:
                content[key] = value.model_dump() if isinstance(value, BaseModel) else value
        return Recipe.model_validate(content)
