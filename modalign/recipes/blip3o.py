"""BLIP3-o: text to pictures through pooled EVA-CLIP tokens (arXiv 2505.09568)."""

from __future__ import annotations

from modalign.hookspecs import hookimpl
from modalign.recipe import DiTConfig, FlowConfig, Recipe, Ref, SamplerConfig, TrainingConfig

BLIP3O = Recipe(
    name="blip3o",
    vlm="qwen2.5-vl-3b",
    encoder="eva-clip-e14-plus",
    # An SDXL fine-tuned on these tokens. Its configuration comes with its weights, so a pipeline of
    # random weights takes derive(generator=None), which also suffices for tokens: what GAP3D
    # compares with.
    generator="sdxl-eva",
    objective=Ref(name="flow-matching", options={"weights": {"patches": 1.0}}),
    head=DiTConfig(hidden_size=1792, depth=24, num_heads=28),
    flow=FlowConfig(grid=1000),
    # Defaults of the released sampling functions; GAP3D's evaluation samples both so.
    sampler=SamplerConfig(steps=30, guidance=3.0, integer_time=True, project=False),
    training=TrainingConfig(),  # as GAP3D's first stage, whose code is a fork of this one's
    num_soft_tokens=64,
    summary="Text to EVA-CLIP tokens of a picture: the image-space predecessor of GAP3D",
    reference="arXiv:2505.09568",
)


@hookimpl
def modalign_recipes() -> list[Recipe]:
    """BLIP3-o with the smaller of its two language models."""
    return [BLIP3O]
