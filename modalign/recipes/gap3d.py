"""GAP3D: text and pictures to 3-D through DINOv2 tokens and TRELLIS (arXiv 2605.28995)."""

from __future__ import annotations

from modalign.hookspecs import hookimpl
from modalign.recipe import (
    DiTConfig,
    FlowConfig,
    Recipe,
    Ref,
    SamplerConfig,
    TrainingConfig,
)

GAP3D = Recipe(
    name="gap3d",
    vlm="qwen2.5-vl-3b",
    encoder="dinov2-vitl14-reg",
    generator="trellis-image-large",
    objective=Ref(
        name="flow-matching",
        options={"weights": {"cls": 0.3, "registers": 0.3, "patches": 0.4}},  # appendix A.2
    ),
    # 24 blocks give the paper's 1.36 B trainable parameters; its appendix says 36, which would
    # give 2.04 B.
    head=DiTConfig(hidden_size=1792, depth=24, num_heads=28),
    flow=FlowConfig(grid=1000),
    # Released run_combined.py; its tokens go to the generator as they were sampled.
    sampler=SamplerConfig(steps=50, guidance=3.0, integer_time=True, project=False),
    # Released training command; the paper leaves the numbers open.
    training=TrainingConfig(
        lr=2.8e-4, min_lr=1e-5, warmup=0.003, epochs=3, batch_size=2048, precision="bfloat16"
    ),
    num_soft_tokens=64,
    summary="Text to 3-D: soft tokens of Qwen2.5-VL drive TRELLIS through DINOv2 tokens",
    reference="arXiv:2605.28995",
)

GAP3D_FINETUNE = GAP3D.derive(
    name="gap3d-finetune",
    # Stage 2, from a stage-1 checkpoint; its DeepSpeed configuration does not clip gradients.
    training=TrainingConfig(
        lr=5.6e-4,
        min_lr=0.0,
        warmup=0.003,
        epochs=1000,
        batch_size=2048,
        grad_clip=None,
        precision="bfloat16",
        starts_from="gap3d",
    ),
    summary="GAP3D's second stage: renders of 3-D assets",
)


@hookimpl
def modalign_recipes() -> list[Recipe]:
    """GAP3D's two training stages."""
    return [GAP3D, GAP3D_FINETUNE]
