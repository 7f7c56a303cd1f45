"""Textures fitted to pictures: drawn from the views' cameras, they should look like the views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from modalign.meshing.layout import Layout, Texels
from modalign.meshing.views import View, sight
from modalign.rendering.rasteriser import intersector

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Source: TRELLIS's texture optimisation (Adam, L1 and total variation); 2,500 steps from zeros.
RATE, LAST_RATE, BETAS, TOTAL_VARIATION = 1e-2, 1e-5, (0.5, 0.9), 0.01


def fit(
    layout: Layout,
    texels: Texels,
    color: NDArray[np.float32],
    views: Sequence[View],
    *,
    steps: int,
    rate: float = RATE,
    total_variation: float = TOTAL_VARIATION,
) -> NDArray[np.float32]:
    """Colours (N, 3) of the texels that make bilinear drawings most like the views, from `color`.

    Each step compares one view, in turn: mean absolute difference, and a share of the texture's
    total variation. The rate falls from 0.01 to 0.00001 as a cosine. Nothing is drawn at random.
    """
    import torch

    size = texels.size
    place = np.full(size * size, -1)
    place[texels.index] = np.arange(len(texels.index))
    mesh = layout.mesh
    intersect = intersector(mesh.vertices, mesh.faces)
    batches = []
    for view in views:
        shown = sight(view, mesh, intersect)
        keep = np.nonzero(shown.trust >= 1)[0]
        corner = layout.uv[layout.faces[shown.triangle[keep]]]
        at = (corner * shown.weights[keep][..., None]).sum(axis=1) * size - 0.5
        low = np.floor(at).astype(np.int64)
        share = at - low
        taps, weights = [], []
        for right in (0, 1):
            for down in (0, 1):
                x, y = low[:, 0] + right, low[:, 1] + down
                taps.append(place[y.clip(0, size - 1) * size + x.clip(0, size - 1)])
                weights.append(np.abs(1 - right - share[:, 0]) * np.abs(1 - down - share[:, 1]))
        tap, weight = np.stack(taps, axis=1), np.stack(weights, axis=1)
        whole = (tap >= 0).all(axis=1)
        if whole.any():
            batches.append(
                (
                    torch.from_numpy(tap[whole]),
                    torch.from_numpy(weight[whole].astype(np.float32)),
                    torch.from_numpy(shown.color[keep[whole]]),
                )
            )
    grid = place.reshape(size, size)
    pairs = np.concatenate(
        [
            np.stack([one.ravel(), two.ravel()], axis=1)
            for one, two in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]))
        ]
    )
    first, second = torch.from_numpy(pairs[(pairs >= 0).all(axis=1)].T.copy())
    texture = torch.nn.Parameter(torch.from_numpy(color.copy()))
    adam = torch.optim.Adam([texture], lr=rate, betas=BETAS)
    for step in range(steps if batches else 0):
        share_done = step / steps
        adam.param_groups[0]["lr"] = LAST_RATE + (rate - LAST_RATE) * (
            0.5 + 0.5 * float(np.cos(np.pi * share_done))
        )
        tap_, weight_, target = batches[step % len(batches)]
        with torch.enable_grad():  # whoever calls may have switched gradients off
            drawn = torch.nn.functional.embedding_bag(
                tap_, texture, per_sample_weights=weight_, mode="sum"
            )
            loss = (drawn - target).abs().mean()
            if total_variation:
                loss = loss + total_variation * (texture[first] - texture[second]).abs().mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return texture.detach().numpy().clip(0, 1)
