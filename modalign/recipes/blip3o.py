"""BLIP3-o: text to pictures through pooled EVA-CLIP tokens (arXiv 2505.09568)."""

from __future__ import annotations

from modalign.hookspecs import hookimpl
from modalign.recipe import DiTConfig, FlowConfig, Recipe, Ref, SamplerConfig, TrainingConfig

BLIP3O = Recipe(
    name="blip3o",
    vlm="qwen2.5-vl-3b",
    encoder="eva-clip-e14-plus",
    # The recipe trains and samples tokens, which is what GAP3D compares with. Its decoder, an SDXL
    # fine-tuned on them, is `sdxl-eva`: derive(generator="sdxl-eva") draws pictures. It is not
    # named here because its configuration comes with its weights: there is no random one.
    generator=None,
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
