"""Ray casting of solids and gentle shading, one ray per pixel."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .camera import Camera
from .shapes import Array
from .solids import Hull, Solid


@dataclass(frozen=True, eq=False)
class Hits:
    """What the rays of a picture meet first.

    `depth` (H, W) along the camera's axis, inf where nothing; `solid` (H, W), -1 where nothing;
    `normals` (H, W, 3), zero where nothing; `rays` (H, W, 3).
    """

    depth: Array
    solid: NDArray[np.int16]
    normals: Array
    rays: Array


@dataclass(frozen=True)
class Light:
    """A distant light: unit vector (3,) towards it, RGB strengths of it and of all-round light."""

    towards: tuple[float, float, float]
    direct: tuple[float, float, float]
    ambient: tuple[float, float, float]
    gloss: float = 0.08


def cast(solids: Sequence[Solid], shape: Hull, camera: Camera, size: int) -> Hits:
    """The first solid met by each ray; rays are tried only within a solid's projected box."""
    rays = camera.rays(size)
    depth = np.full((size, size), np.inf, np.float32)
    nearest = np.full((size, size), -1, np.int16)
    normals = np.zeros((size, size, 3), np.float32)
    first, last = camera.pixels(*shape.projected(camera.eye, camera.view), size)
    boxes = np.concatenate([first, last], axis=1).astype(int).tolist()
    origin = camera.eye[None]
    windows = []
    for k, (solid, (left, top, right, bottom)) in enumerate(zip(solids, boxes, strict=True)):
        window = (slice(top, bottom), slice(left, right))
        windows.append(window)
        if right <= left or bottom <= top:
            continue
        crossings = solid.entries(origin, rays[window].reshape(-1, 3)).min(axis=0)
        crossings = crossings.reshape(bottom - top, right - left)
        closer = crossings < depth[window]
        np.copyto(depth[window], crossings, where=closer)
        np.copyto(nearest[window], np.int16(k), where=closer)
    for k, (solid, window) in enumerate(zip(solids, windows, strict=True)):
        seen = nearest[window] == k
        if seen.any():
            points = camera.eye + depth[window][seen][:, None] * rays[window][seen]
            normals[window][seen] = solid.normals(points)
    return Hits(depth, nearest, normals, rays)


def shade(albedo: Array, normals: Array, rays: Array, light: Light) -> Array:
    """RGB (N, 3) in 0..1 of surfaces with albedo (N, 3), unit normals (N, 3), seen along rays."""
    towards = np.array(light.towards, np.float32)
    facing = normals @ towards
    view = rays / np.sqrt(np.square(rays).sum(axis=1))[:, None]
    mirrored = towards - 2 * facing[:, None] * normals
    shine = np.maximum((mirrored * view).sum(axis=1), 0) ** 16
    direct, ambient = np.array(light.direct, np.float32), np.array(light.ambient, np.float32)
    result = albedo * (ambient + np.maximum(facing, 0)[:, None] * direct)
    result += (light.gloss * shine * (facing > 0))[:, None]
    value: Array = np.clip(result, 0, 1)
    return value
