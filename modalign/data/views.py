"""Pictures of one object as the second stage of GAP3D is trained on them, and where from."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from modalign.assets import read_mesh
from modalign.data.permutation import key
from modalign.errors import ModalignError, did_you_mean
from modalign.rendering.cameras import (
    EVALUATION_PITCH_DEGREES,
    NEAR_FOV,
    NEAR_RADIUS,
    hammersley,
    look,
)
from modalign.rendering.visibility import POINTS, TOLERANCE, surface_points, visible_counts

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

VIEWS = ("best", "4", "24")
SMALLEST, LARGEST = 16, 4096  # pixels on a side
# Source: GAP3D, appendix A.1.2, for the yaws; the rest is that of its ground truth's views.
YAWS = tuple(np.radians((0.0, 90.0, 180.0, 270.0)).tolist())
PITCH = float(np.radians(EVALUATION_PITCH_DEGREES))
# Source: the pictures that TRELLIS is trained on: lenses by 1 / radius^2, the ball of the unit
# cube fills each of them; cropped to 1.2 times the object.
TRAINING_VIEWS = 24
TRAINING_FOVS = np.radians((10.0, 70.0))
BALL = 3**0.5 / 2
MARGIN = 1.2
# From OpenCV's camera axes (y down, z forward) to those of transforms.json (y up, z backward).
BLENDER = np.diag([1.0, -1.0, -1.0, 1.0])


class View(NamedTuple):
    """Where from: angles in radians, distance in the unit cube's sides, as in `cameras.look`."""

    yaw: float
    pitch: float
    radius: float
    fov: float


@dataclass(frozen=True)
class ViewPlan:
    """Which pictures of each object are drawn.

    Attributes:
        views: "best" of the four yaws; "4", all of them, the one that shows most first; or "24"
            all around with different lenses, as TRELLIS is trained on.
        size: pixels on a side, 16 to 4096.
        crop: to 1.2 times the object, on black; else RGBA.
        seed: of the points on the surface and of the 24 views.

    Raises:
        ModalignError: there are no such views or sizes.
    """

    views: str = "best"
    size: int = 512
    crop: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.views not in VIEWS:
            raise ModalignError(
                f"views {self.views!r} is unknown.{did_you_mean(self.views, VIEWS)}"
            )
        if not SMALLEST <= self.size <= LARGEST:
            raise ModalignError(
                f"size is {self.size}; expected {SMALLEST} to {LARGEST} pixels on a side"
            )


def object_files(path: Path, plan: ViewPlan) -> dict[str, bytes]:
    """The pictures of a mesh and their `transforms.json`, by file name.

    They follow from the plan and from what the file holds; its name is told, and has no effect.

    Raises:
        ValueError: the mesh cannot be read or seen.
        OSError: the file cannot be read.
    """
    import torch

    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    mesh, placement = read_mesh(path)
    generator = torch.Generator().manual_seed(key(plan.seed, int(digest, 16)))
    points = surface_points(mesh.vertices, mesh.faces, POINTS, generator)
    sides = [View(yaw, PITCH, NEAR_RADIUS, float(NEAR_FOV)) for yaw in YAWS]
    counts = visible_counts(mesh.vertices, mesh.faces, [look(*view) for view in sides], points)
    if plan.views == "24":
        views = training_views(generator)
    else:
        # Stable: the lowest yaw comes first where several show as many points.
        order = sorted(range(len(sides)), key=lambda side: -counts[side])
        views = [sides[side] for side in order[: 1 if plan.views == "best" else None]]
    files, frames = {}, []
    # What is cropped is drawn twice as large, so that no pixel is made up.
    scale = 2 if plan.crop else 1
    cameras = [look(*view) for view in views]
    drawn = mesh.cutouts(cameras, plan.size * scale, supersampling=2 // scale)
    for number, (view, camera, pixels) in enumerate(zip(views, cameras, drawn, strict=True)):
        name = f"{number:03d}.png"
        if not pixels[..., 3].any():
            raise ValueError(f"nothing of it is seen in view {number}")
        frame: dict[str, Any] = {
            "file_path": name,
            "camera_angle_x": view.fov,
            "transform_matrix": (np.linalg.inv(camera.extrinsics) @ BLENDER).tolist(),
            "yaw": view.yaw,
            "pitch": view.pitch,
            "radius": view.radius,
        }
        if plan.crop:
            box = crop_box(pixels[..., 3])
            frame["crop"] = [edge / (plan.size * scale) for edge in box]
            pixels = cropped(pixels, box, plan.size)
        files[name] = _png(pixels)
        frames.append(frame)
    transforms = {
        "aabb": [[-0.5] * 3, [0.5] * 3],
        "scale": placement.scale,
        "offset": placement.offset,
        "source": {"file": path.name, "bytes": len(content), "sha256": digest},
        "visibility": {
            "points": POINTS,
            "tolerance": TOLERANCE,
            "yaws": YAWS,
            "visible": counts,
        },
        "frames": frames,
    }
    files["transforms.json"] = json.dumps(transforms, indent=1).encode()
    return files


def training_views(generator: torch.Generator) -> list[View]:
    """24 directions spread evenly, turned at random; 1 / radius^2 is uniform, fov 10 to 70 degrees.

    Each lens just holds the ball around the unit cube.
    """
    import torch

    shift = torch.rand(2, generator=generator, dtype=torch.float64).numpy()
    share = torch.rand(TRAINING_VIEWS, generator=generator, dtype=torch.float64).numpy()
    height, turn = (hammersley(TRAINING_VIEWS, 2) + shift / (TRAINING_VIEWS, 1)).T
    pitch = np.arccos((1 - 2 * height).clip(-1, 1)) - np.pi / 2
    far, near = (np.sin(TRAINING_FOVS / 2) / BALL) ** 2  # 1 / radius^2
    radius = (far + share * (near - far)) ** -0.5
    rows = zip(2 * np.pi * (turn % 1), pitch, radius, 2 * np.arcsin(BALL / radius), strict=True)
    return [View(*map(float, row)) for row in rows]


def crop_box(alpha: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a square of 1.2 times what `alpha` (S, S) covers.

    It may leave the picture.
    """
    y, x = np.nonzero(alpha)
    middle = ((x.min() + x.max()) / 2, (y.min() + y.max()) / 2)
    half = max(float(np.ptp(x)), float(np.ptp(y)), 1.0) / 2 * MARGIN
    left, top, right, bottom = (int(m + sign * half) for sign in (-1, 1) for m in middle)
    return left, top, right, bottom


def cropped(pixels: NDArray[np.uint8], box: Sequence[int], size: int) -> NDArray[np.uint8]:
    """The part (size, size, 3) of RGBA pixels (S, S, 4) in a box, on black."""
    from PIL import Image

    left, top, right, bottom = box
    part = Image.fromarray(pixels).crop((left, top, right, bottom))
    shown = np.asarray(part.resize((size, size), Image.Resampling.LANCZOS))
    on_black: NDArray[np.uint8] = np.rint(shown[..., :3] * (shown[..., 3:] / 255)).astype(np.uint8)
    return on_black


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
