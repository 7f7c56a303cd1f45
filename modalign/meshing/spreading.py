"""Values at vertices, carried over edges to vertices that have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMOOTHING = 20  # sweeps after every vertex has a value, so that no front of the filling shows


def edges(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """The edges (3F, 2) of faces (F, 3), face by face; a shared edge comes once per face."""
    pairs: NDArray[np.int64] = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    return pairs


def spread(
    values: NDArray[np.float32], known: NDArray[np.bool_], faces: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Values (V, C) that keep what is `known` (V,) and are filled from neighbours elsewhere.

    Rings of unknown vertices take the mean of the neighbours that have a value, then relax towards
    the mean of all neighbours. What no edge joins to a known vertex takes the mean of the known.
    """
    result = np.where(known[:, None], values, 0).astype(np.float64)
    if known.all() or not known.any():
        return result.astype(np.float32)
    pairs = edges(faces)
    start, end = np.concatenate([pairs, pairs[:, ::-1]]).T

    def means(has: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Means (V, C) over the neighbours that have a value, and where there is one."""
        keep = has[end] & ~known[start]
        count = np.bincount(start[keep], minlength=len(result))
        sums = [np.bincount(start[keep], channel, len(result)) for channel in result[end[keep]].T]
        return np.stack(sums, axis=1) / np.maximum(count, 1)[:, None], count > 0

    has = known.copy()
    while True:
        mean, reached = means(has)
        new = reached & ~has
        if not new.any():
            break
        result[new] = mean[new]
        has |= new
    for _ in range(SMOOTHING):
        mean, reached = means(has)
        result[reached] = mean[reached]
    result[~has] = result[known].mean(axis=0)
    return result.astype(np.float32)
