"""What generators make: meshes and pictures that save themselves and can be looked at.

World frame of every mesh: right-handed, z up, the object inside -0.5..0.5.
"""

from __future__ import annotations

import io
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    Floats = NDArray[np.float32]

# By what a generator says it produces.
FORMATS = {
    "mesh": (".glb", ".ply", ".obj"),
    "picture": (".png", ".jpg", ".jpeg", ".webp"),
}
JPEG_QUALITY = 95  # Pillow's 75 shows blocks in smooth areas
# glTF prescribes y up and OBJ readers assume it; PLY files carry world coordinates as they are.
Y_UP = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=np.float32)  # (x, y, z) -> (x, z, -y)
Y_UP_FORMATS = (".glb", ".obj")

# The paper's snapshot: four sides from slightly above, a long lens. Source: facts of TRELLIS, 4.
VIEW_OFFSET_DEGREES = -16.0
VIEW_PITCH_DEGREES = 20.0
VIEW_RADIUS = 10.0
VIEW_FOV_DEGREES = 8.0
SUPERSAMPLING = 2
BACKGROUND = 1.0
AMBIENT, DIFFUSE = 0.45, 0.55  # soft light from behind the camera and above


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh with colours.

    Attributes:
        vertices: (V, 3) float32, world frame.
        faces: (F, 3) int64, counter-clockwise from outside.
        vertex_colors: (V, 3) float32 in 0..1, as displayed (sRGB).
        normals: (V, 3) float32 unit vectors; from the geometry if not given.

    Raises:
        ValueError: arrays have wrong shapes, hold numbers that are not finite, or faces name
            vertices that do not exist.
    """

    vertices: Floats
    faces: NDArray[np.int64]
    vertex_colors: Floats
    normals: Floats | None = None

    def __post_init__(self) -> None:
        arrays = {"vertices": self.vertices, "vertex_colors": self.vertex_colors}
        if self.normals is not None:
            arrays["normals"] = self.normals
        for name, array in arrays.items():
            array = np.ascontiguousarray(array, dtype=np.float32)
            if array.ndim != 2 or array.shape != (len(self.vertices), 3):
                raise ValueError(
                    f"{name} must be ({len(self.vertices)}, 3), one row per vertex, "
                    f"got {array.shape}"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"{name} hold numbers that are not finite")
            object.__setattr__(self, name, array)
        faces = np.ascontiguousarray(self.faces, dtype=np.int64)
        if faces.ndim != 2 or faces.shape[1] != 3:
            raise ValueError(f"faces must be (F, 3), got {faces.shape}")
        if faces.size and not 0 <= faces.min() <= faces.max() < len(self.vertices):
            raise ValueError(
                f"faces name vertices {faces.min()}..{faces.max()}, "
                f"but there are {len(self.vertices)}"
            )
        object.__setattr__(self, "faces", faces)

    @property
    def vertex_normals(self) -> Floats:
        """Unit normals (V, 3): those given, or area-weighted means of the adjacent faces'."""
        if self.normals is not None:
            return self.normals
        a, b, c = (self.vertices[self.faces[:, k]].astype(np.float64) for k in range(3))
        face_normals = np.cross(b - a, c - a)  # as long as twice the area
        normals = np.stack(
            [
                np.bincount(
                    self.faces.ravel(),
                    weights=np.repeat(face_normals[:, axis], 3),
                    minlength=len(self.vertices),
                )
                for axis in range(3)
            ],
            axis=1,
        )
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        up = np.array([0.0, 0.0, 1.0])  # for a vertex that no face uses
        unit: Floats = np.where(length > 0, normals / np.maximum(length, 1e-30), up)
        return unit.astype(np.float32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write GLB, PLY or OBJ, whole or not at all; equal meshes give equal files.

        GLB and OBJ are y up, PLY keeps the world's z up. glTF defines vertex colours as linear
        light, so they are converted from sRGB there; PLY and OBJ carry them as displayed.

        Raises:
            ValueError: the extension is unknown, or there is no face to write.
            OSError: the file cannot be written.
        """
        path = Path(path)
        _check_suffix(path, "mesh")
        if len(self.faces) == 0:
            raise ValueError(f"cannot save {path.name!r}: the mesh has no faces")
        write_whole(path, self._encode(path.suffix.lower()))

    def _encode(self, suffix: str) -> bytes:
        import trimesh

        turn = Y_UP if suffix in Y_UP_FORMATS else np.eye(3, dtype=np.float32)
        colors = linear_from_srgb(self.vertex_colors) if suffix == ".glb" else self.vertex_colors
        rounded = np.rint(colors.clip(0, 1) * 255).astype(np.uint8)
        mesh = trimesh.Trimesh(
            vertices=self.vertices @ turn.T,
            faces=self.faces,
            vertex_normals=self.vertex_normals @ turn.T,
            vertex_colors=rounded,
            process=False,
        )
        if suffix == ".glb":
            return bytes(mesh.export(file_type="glb", include_normals=True))
        if suffix == ".ply":
            return bytes(mesh.export(file_type="ply", vertex_normal=True))
        text: str = mesh.export(file_type="obj", include_normals=True, header="modalign")
        return text.encode()

    def render(self, views: int = 4, size: int = 256) -> NDArray[np.uint8]:
        """Pictures from evenly spaced sides, (views, size, size, 3), softly lit, white behind.

        Embree traces the rays where it is installed; a z-buffer gives the same picture without.
        """
        if len(self.faces) == 0:
            return np.full((views, size, size, 3), round(BACKGROUND * 255), dtype=np.uint8)
        yaws = np.radians(VIEW_OFFSET_DEGREES) + np.arange(views) * 2 * np.pi / views
        intersect = _embree_scene(self) or _depth_buffer(self)
        pictures = [self._view(float(yaw), size * SUPERSAMPLING, intersect) for yaw in yaws]
        fine = np.stack(pictures)
        fine = fine.reshape(views, size, SUPERSAMPLING, size, SUPERSAMPLING, 3)
        mean: NDArray[np.float64] = fine.mean(axis=(2, 4)).clip(0, 1)
        return np.rint(mean * 255).astype(np.uint8)

    def _view(self, yaw: float, size: int, intersect: Any) -> NDArray[np.float64]:
        extrinsics = camera_extrinsics(yaw, np.radians(VIEW_PITCH_DEGREES), VIEW_RADIUS)
        intrinsics = camera_intrinsics(np.radians(VIEW_FOV_DEGREES))
        triangle, weights = intersect(extrinsics, intrinsics, size)  # (size^2,), (size^2, 3)
        hit = triangle >= 0
        corners = self.faces[triangle[hit]]  # (hits, 3)
        weights = weights[hit][..., None]
        color = (self.vertex_colors[corners] * weights).sum(axis=1)
        normal = (self.vertex_normals[corners] * weights).sum(axis=1)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        light = np.array([0.0, 0.0, 0.6]) - extrinsics[2, :3]  # towards the camera, and up
        light /= np.linalg.norm(light)
        shade = AMBIENT + DIFFUSE * (normal @ light).clip(0, 1)
        picture = np.full((size * size, 3), BACKGROUND)
        picture[hit] = color * shade[:, None]
        return picture.reshape(size, size, 3)

    def preview(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG of four views side by side.

        Raises:
            OSError: the file cannot be written.
        """
        from PIL import Image

        strip = np.concatenate(list(self.render()), axis=1)
        buffer = io.BytesIO()
        Image.fromarray(strip).save(buffer, format="PNG")
        write_whole(Path(path), buffer.getvalue())


@dataclass(frozen=True, eq=False)
class Picture:
    """An RGB picture.

    Attributes:
        pixels: (H, W, 3) uint8 as displayed (sRGB), rows from the top.

    Raises:
        ValueError: the array has another shape or type.
    """

    pixels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        pixels = np.ascontiguousarray(self.pixels)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise ValueError(
                f"pixels must be (H, W, 3) of uint8, got {pixels.shape} of {pixels.dtype}"
            )
        object.__setattr__(self, "pixels", pixels)

    @classmethod
    def from_unit(cls, values: Floats) -> Picture:
        """The picture of values (H, W, 3) in 0..1; what lies outside is clipped.

        Raises:
            ValueError: the shape is another, or a value is not finite.
        """
        if not np.isfinite(values).all():
            raise ValueError("pixels hold numbers that are not finite")
        return cls(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8))

    @property
    def image(self) -> Image:
        """The same as a Pillow image."""
        from PIL import Image

        return Image.fromarray(self.pixels)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write PNG, JPEG or WebP, whole or not at all; PNG and WebP lose nothing.

        Raises:
            ValueError: the extension is unknown.
            OSError: the file cannot be written.
        """
        path = Path(path)
        _check_suffix(path, "picture")
        options: dict[str, tuple[str, dict[str, Any]]] = {
            ".png": ("PNG", {}),
            ".webp": ("WEBP", {"lossless": True}),
        }
        name, how = options.get(path.suffix.lower(), ("JPEG", {"quality": JPEG_QUALITY}))
        buffer = io.BytesIO()
        self.image.save(buffer, format=name, **how)
        write_whole(path, buffer.getvalue())

    def preview(self, path: str | os.PathLike[str]) -> None:
        """Write the picture as PNG, whatever the extension.

        Raises:
            OSError: the file cannot be written.
        """
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG")
        write_whole(Path(path), buffer.getvalue())


def _check_suffix(path: Path, produced: str) -> None:
    if path.suffix.lower() not in FORMATS[produced]:
        raise ValueError(
            f"cannot save {path.name!r}: unknown extension {path.suffix!r}; "
            f"known: {', '.join(FORMATS[produced])}"
        )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(unfinished, "xb") as file:
            file.write(content)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def linear_from_srgb(colors: Floats) -> Floats:
    """Linear light of displayed values, both in 0..1. Source: IEC 61966-2-1."""
    high = ((np.maximum(colors, 0) + 0.055) / 1.055) ** 2.4
    return np.where(colors <= 0.04045, colors / 12.92, high).astype(np.float32)


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


def _pixel_rays(
    extrinsics: NDArray[np.float64], intrinsics: NDArray[np.float64], size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Origin (3,) and directions (size^2, 3) through the pixel centres, rows from the top."""
    centre = (np.arange(size) + 0.5) / size
    v, u = np.meshgrid(centre, centre, indexing="ij")
    pixel = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
    rotation = extrinsics[:3, :3]
    directions = pixel @ (np.linalg.inv(intrinsics).T @ rotation)
    return -rotation.T @ extrinsics[:3, 3], directions


def _embree_scene(mesh: Mesh) -> Any:
    """An intersector by ray tracing, None where Embree is not installed."""
    try:
        from trimesh import Trimesh
        from trimesh.ray.ray_pyembree import RayMeshIntersector
    except ImportError:
        return None
    scene = RayMeshIntersector(Trimesh(mesh.vertices, mesh.faces, process=False))
    corners = mesh.vertices[mesh.faces].astype(np.float64)

    def intersect(extrinsics: Any, intrinsics: Any, size: int) -> tuple[Any, Any]:
        origin, directions = _pixel_rays(extrinsics, intrinsics, size)
        triangle = scene.intersects_first(np.broadcast_to(origin, directions.shape), directions)
        weights = np.zeros((len(triangle), 3))
        hit = triangle >= 0
        a, b, c = np.moveaxis(corners[triangle[hit]] - origin, 1, 0)
        ray = directions[hit]
        # Volumes of the tetrahedra between the ray and each edge.
        weights[hit] = np.stack(
            [
                (np.cross(second, third) * ray).sum(axis=1)
                for second, third in ((b, c), (c, a), (a, b))
            ],
            axis=1,
        )
        weights[hit] /= weights[hit].sum(axis=1, keepdims=True)
        return triangle, weights

    return intersect


def _depth_buffer(mesh: Mesh, budget: int = 1 << 22) -> Any:
    """An intersector by rasterisation; triangles of similar extent are filled together."""

    def intersect(extrinsics: Any, intrinsics: Any, size: int) -> tuple[Any, Any]:
        seen = mesh.vertices @ extrinsics[:3, :3].T + extrinsics[:3, 3]
        projected = seen @ intrinsics.T
        pixel = projected[:, :2] / projected[:, 2:] * size - 0.5  # pixel centres at integers
        corner, inverse_depth = pixel[mesh.faces], 1 / seen[mesh.faces, 2]  # (F, 3, 2), (F, 3)
        low = np.ceil(corner.min(axis=1)).astype(np.int64).clip(0, size)
        high = np.floor(corner.max(axis=1)).astype(np.int64).clip(-1, size - 1)
        extent = (high - low + 1).max(axis=1)
        visible = ((high - low) >= 0).all(axis=1)
        nearest = np.zeros(size * size)
        triangle = np.full(size * size, -1)
        weights = np.zeros((size * size, 3))
        side = 1
        while (visible & (extent > side // 2)).any():
            bucket = np.nonzero(visible & (extent > side // 2) & (extent <= side))[0]
            step = np.stack(np.meshgrid(range(side), range(side), indexing="xy"), axis=-1)
            chunk = max(1, budget // side**2)
            for start in range(0, len(bucket), chunk):
                rows = bucket[start : start + chunk]
                at = low[rows, None] + step.reshape(1, -1, 2)  # (rows, side^2, 2)
                share = _barycentric(corner[rows, None], at)
                inside = (share >= -1e-9).all(axis=-1) & (at < size).all(axis=-1)
                row, which = np.nonzero(inside)
                # Perspective: what is linear on the screen is the inverse depth.
                share = share[row, which] * inverse_depth[rows[row]]
                inverse = share.sum(axis=1)
                place = at[row, which, 1] * size + at[row, which, 0]
                order = np.lexsort((-row, inverse))  # nearest written last
                place, inverse = place[order], inverse[order]
                owner, share = rows[row][order], (share / share.sum(axis=1, keepdims=True))[order]
                last = len(place) - 1 - np.unique(place[::-1], return_index=True)[1]
                last = last[inverse[last] > nearest[place[last]]]
                nearest[place[last]] = inverse[last]
                triangle[place[last]], weights[place[last]] = owner[last], share[last]
            side *= 2
        return triangle, weights

    return intersect


def _barycentric(corner: Any, at: Any) -> NDArray[np.float64]:
    """Shares (..., 3) of the corners (..., 3, 2) at points (..., 2); outside, one is negative."""
    a, b, c = np.moveaxis(corner, -2, 0)

    def area(p: Any, q: Any, r: Any) -> Any:
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (
            r[..., 0] - p[..., 0]
        )

    total = area(a, b, c)
    total = np.where(np.abs(total) < 1e-12, np.nan, total)  # seen edge-on: nothing is inside
    shares: NDArray[np.float64] = np.stack([area(at, b, c), area(at, c, a), area(at, a, b)], -1)
    return shares / total[..., None]
