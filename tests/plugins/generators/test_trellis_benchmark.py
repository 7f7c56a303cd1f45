"""The benchmark of whole assets runs where there is no GPU, and times what it says."""

from __future__ import annotations

import pytest
import torch
from modalign_plugins.generators.trellis import Trellis, loader
from modalign_plugins.generators.trellis.sparse import Coordinates

from benchmarks.trellis_asset import STAGES, compile_blocks, made

from .trellis_tiny import MODELS, PIPELINE, STREAM
from .trellis_worlds import scattered


@pytest.fixture
def trellis():
    built = loader.random_pipeline(PIPELINE, MODELS, device="cpu", dtype=torch.float32)
    return Trellis(*built, accepts=STREAM)


def test_every_stage_of_an_asset_is_timed(trellis):
    asset = made(trellis, Coordinates(scattered(4, batch=1)), steps=2)
    assert tuple(asset.seconds) == STAGES
    assert asset.total == sum(asset.seconds.values())
    assert min(asset.seconds.values()) > 0


def test_compiling_touches_every_block_of_both_flows(trellis, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, **_: compiled.append(block))
    compile_blocks(trellis)
    flows = (trellis.models.structure_flow, trellis.models.latent_flow)
    assert compiled == [block for flow in flows for block in flow.blocks]
