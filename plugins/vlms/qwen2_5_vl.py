"""Qwen2.5-VL: 3B, 7B, and the mini that ships."""

from __future__ import annotations

from modalign import VLMSpec, hookimpl

from .qwen2_5_vl_sizes import MINI, QWEN_3B, QWEN_7B
from .qwen_vl_loading import spec_of


@hookimpl
def modalign_vlms() -> list[VLMSpec]:
    """Qwen2.5-VL in two published sizes, and the mini."""
    return [spec_of(sizes) for sizes in (QWEN_3B, QWEN_7B, MINI)]
