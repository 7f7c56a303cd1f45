"""Cameras that look at objects through a square window."""

from dataclasses import dataclass

import numpy as np

from .shapes import Array
from .solids import Hull

# TRELLIS enlarges the square around the object by this factor (trellis_image_to_3d.py).
TRELLIS_MARGIN = 1.2


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera and the square of its image plane that the picture shows.

    `eye` (3,) in the world; rows of `view` (3, 3) are right, down and forward; `window` is left,
    top and side in units of the distance to the image plane. `yaw` and `pitch` in degrees say
    where it stands: yaw 0 in front, positive towards +x; pitch above the horizon.
    """

    eye: Array
    view: Array
    window: tuple[float, float, float]
    yaw: float
    pitch: float

    def rays(self, size: int) -> Array:
        """Directions (size, size, 3) through the pixel centres, forward component 1."""
        left, top, side = self.window
        steps = ((np.arange(size) + 0.5) / size * side).astype(np.float32)
        x, y = left + steps, top + steps
        right, down, forward = self.view
        rows = forward + y[:, None] * down
        value: Array = rows[:, None, :] + (x[:, None] * right)[None]
        return value

    def pixels(self, low: Array, high: Array, size: int) -> tuple[Array, Array]:
        """First and past-the-last pixel (K, 2), x and y, of boxes in the image plane."""
        corner = np.array(self.window[:2], np.float32)
        scale = size / self.window[2]
        # Half a pixel either way at most: a pixel counts when its centre may be covered.
        first = np.floor((low - corner) * scale - 0.01)
        last = np.ceil((high - corner) * scale + 0.01)
        return np.clip(first, 0, size), np.clip(last, 0, size)


def stand(
    yaw: float, pitch: float, distance: float, at: tuple[float, float, float] = (0, 0, 0)
) -> Camera:
    """A camera at a distance from a point it looks at; its window still is a 40-degree frame."""
    a, b = np.radians(yaw), np.radians(pitch)
    away = np.array([np.sin(a) * np.cos(b), -np.cos(a) * np.cos(b), np.sin(b)])
    right = np.array([np.cos(a), np.sin(a), 0])
    view = np.stack([right, np.cross(-away, right), -away]).astype(np.float32)
    half = float(np.tan(np.radians(20)))
    eye = (np.array(at) + distance * away).astype(np.float32)
    return Camera(eye, view, (-half, -half, 2 * half), yaw, pitch)


def framed(
    camera: Camera, shape: Hull, margin: float, shift: tuple[float, float] = (0, 0)
) -> Camera:
    """The camera with its window a square around what is shown.

    Args:
        camera: Where it stands.
        shape: What it shows, whole.
        margin: Side of the window over the longer side of the outline's bounding box.
        shift: Offset of the window's centre, as a fraction of its side, right and down.
    """
    low, high = shape.projected(camera.eye, camera.view)
    lowest, highest = low.min(axis=0), high.max(axis=0)
    side = float((highest - lowest).max()) * margin
    x, y = (float(value) for value in (lowest + highest) / 2)
    window = (x - side / 2 + shift[0] * side, y - side / 2 + shift[1] * side, side)
    return Camera(camera.eye, camera.view, window, camera.yaw, camera.pitch)
