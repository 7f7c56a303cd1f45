"""Cameras: OpenCV axes, a world whose z is up, angles in radians.

Source: facts of TRELLIS, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The paper's snapshot: four sides from slightly above, a long lens.
VIEW_OFFSET_DEGREES = -16.0
VIEW_PITCH_DEGREES = 20.0
VIEW_RADIUS = 10.0
VIEW_FOV_DEGREES = 8.0


@dataclass(frozen=True, eq=False)
class Camera:
    """Where a picture is taken from.

    Attributes:
        extrinsics: (4, 4), world to camera; x right, y down, z forward.
        intrinsics: (3, 3), a pinhole for pictures of width and height 1.
    """

    extrinsics: NDArray[np.float64]
    intrinsics: NDArray[np.float64]

    @property
    def position(self) -> NDArray[np.float64]:
        """Where it stands in the world, (3,)."""
        position: NDArray[np.float64] = -self.extrinsics[:3, :3].T @ self.extrinsics[:3, 3]
        return position

    def rays(self, size: int) -> NDArray[np.float64]:
        """Directions (size^2, 3) through the pixel centres, rows from the top; depth 1 each."""
        centre = (np.arange(size) + 0.5) / size
        v, u = np.meshgrid(centre, centre, indexing="ij")
        pixel = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
        directions: NDArray[np.float64] = pixel @ (
            np.linalg.inv(self.intrinsics).T @ self.extrinsics[:3, :3]
        )
        return directions


def camera_extrinsics(yaw: float, pitch: float, radius: float) -> NDArray[np.float64]:
    """World to camera (4, 4), OpenCV axes, looking at the origin, z up; angles in radians.

    Yaw 0 looks from +y, pitch rises towards +z.
    """
    sideways = np.array([np.sin(yaw), np.cos(yaw), 0.0])
    back = sideways * np.cos(pitch) + np.array([0.0, 0.0, np.sin(pitch)])  # origin to camera
    right = np.array([-np.cos(yaw), np.sin(yaw), 0.0])
    matrix = np.eye(4)
    matrix[:3, :3] = [right, -np.cross(back, right), -back]
    matrix[2, 3] = radius
    return matrix


def camera_intrinsics(fov: float) -> NDArray[np.float64]:
    """Pinhole matrix (3, 3) for pictures of width and height 1; field of view in radians."""
    focal = 0.5 / np.tan(fov / 2)
    return np.array([[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]])


def look(yaw: float, pitch: float, radius: float, fov: float) -> Camera:
    """The camera that `camera_extrinsics` and `camera_intrinsics` describe."""
    return Camera(camera_extrinsics(yaw, pitch, radius), camera_intrinsics(fov))


def around(
    views: int,
    *,
    offset: float = np.radians(VIEW_OFFSET_DEGREES),
    pitch: float = np.radians(VIEW_PITCH_DEGREES),
    radius: float = VIEW_RADIUS,
    fov: float = np.radians(VIEW_FOV_DEGREES),
) -> Sequence[Camera]:
    """Cameras at evenly spaced yaws, by default those of the paper's snapshots."""
    yaws = offset + np.arange(views) * 2 * np.pi / views
    return [look(float(yaw), pitch, radius, fov) for yaw in yaws]
