"""How fast the toybox feeds training, on one core, objects included."""

from itertools import count

import numpy as np
import pytest
from modalign_plugins.datasets.toybox import Toybox

BOX = Toybox(seed=0)
MAKERS = {
    "object": BOX.object,
    "asset": BOX.asset,
    "scene": BOX.scene,
    "short captions": BOX.captions,
    "long captions": lambda index: BOX.captions(index, length="long"),
    "occupancy 64": lambda index: BOX.object(index).occupancy(64),
    "surface voxels 16": lambda index: BOX.object(index).surface_voxels(16),
    "surface voxels 64": lambda index: BOX.object(index).surface_voxels(64),
    "surface points 2048": lambda index: BOX.object(index).surface(
        2048, np.random.default_rng(index)
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_samples_per_second(benchmark, name):
    """Each round makes another object, so that the mean is over families."""
    indices = count()
    benchmark.pedantic(lambda: MAKERS[name](next(indices)), rounds=100, warmup_rounds=3)
    benchmark.extra_info["samples per second"] = 1 / benchmark.stats["mean"]
