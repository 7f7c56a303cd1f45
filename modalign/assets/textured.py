"""Triangle meshes with a texture."""

from __future__ import annotations

import io
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modalign.assets.gltf import glb
from modalign.assets.mesh import Y_UP, Mesh
from modalign.assets.surface import Surface
from modalign.assets.writing import check_suffix, write_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TexturedMesh(Surface):
    """A triangle mesh with a texture of its base colour.

    Attributes:
        vertices: (V, 3) float32, world frame; a vertex on a seam is there once for each side.
        faces: (F, 3) int64, counter-clockwise from outside.
        uv: (V, 2) float32 in 0..1: 0, 0 is the texture's top left corner, 1, 1 its bottom right.
        texture: (H, W, 3) uint8 as displayed (sRGB), rows from the top.
        normals: (V, 3) float32 unit vectors; from the geometry if not given.
        metallic: 0..1, of the whole surface.
        roughness: 0..1, of the whole surface.

    Raises:
        ValueError: arrays have wrong shapes, or hold numbers out of range or not finite.
    """

    vertices: Floats
    faces: NDArray[np.int64]
    uv: Floats
    texture: NDArray[np.uint8]
    normals: Floats | None = None
    metallic: float = 0.0
    roughness: float = 1.0

    def __post_init__(self) -> None:
        texture = np.ascontiguousarray(self.texture)
        if (
            texture.ndim != 3
            or texture.shape[2] != 3
            or texture.dtype != np.uint8
            or not texture.size
        ):
            raise ValueError(
                f"texture must be (H, W, 3) of uint8, got {texture.shape} of {texture.dtype}"
            )
        uv = np.ascontiguousarray(self.uv, dtype=np.float32)
        if uv.shape != (len(self.vertices), 2):
            raise ValueError(
                f"uv must be ({len(self.vertices)}, 2), one row per vertex, got {uv.shape}"
            )
        if not ((uv >= 0) & (uv <= 1)).all():  # false of NaN, too
            raise ValueError("uv must lie in 0..1, where the texture is")
        for name in ("metallic", "roughness"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0 to 1, got {getattr(self, name)}")
        plain = Mesh(self.vertices, self.faces, np.zeros_like(self.vertices), self.normals)
        values = {"texture": texture, "uv": uv, "vertices": plain.vertices, "faces": plain.faces}
        for name, value in (values | {"normals": plain.vertex_normals}).items():
            object.__setattr__(self, name, value)

    def colors_at(self, uv: NDArray[Any]) -> Floats:
        """Colours (N, 3) in 0..1 at places uv (N, 2), bilinear between the centres of texels."""
        return texture_colors(self.texture, uv)

    @property
    def mesh(self) -> Mesh:
        """The same with the texture's colours at the vertices, and nothing between them."""
        return Mesh(self.vertices, self.faces, self.colors_at(self.uv), self.normals)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write GLB, OBJ or PLY, whole or not at all; equal meshes give equal files.

        A GLB holds everything. Beside NAME.obj lie NAME.mtl and NAME_texture.png, and all three are
        written or none. PLY has no textures: it gets vertex colours, and a warning is logged.
        GLB and OBJ are y up, PLY keeps the world's z up. The texture stays as displayed: glTF
        defines a base colour texture as sRGB.

        Raises:
            ValueError: the extension is unknown, or there is no face to write.
            OSError: a file cannot be written.
        """
        path = Path(path)
        check_suffix(path, "mesh")
        suffix = path.suffix.lower()
        if len(self.faces) == 0:
            raise ValueError(f"cannot save {path.name!r}: the mesh has no faces")
        if suffix == ".ply":
            logger.warning("%s: PLY has no textures; wrote vertex colours instead", path.name)
            self.mesh.save(path)
        elif suffix == ".obj":
            write_together(self._obj(path))
        else:
            write_whole(path, self._glb())

    def _png(self) -> bytes:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(self.texture).save(buffer, format="PNG")
        return buffer.getvalue()

    def _glb(self) -> bytes:
        attributes = {
            "POSITION": self.vertices @ Y_UP.T,
            "NORMAL": self.vertex_normals @ Y_UP.T,
            "TEXCOORD_0": self.uv,
        }
        return glb(
            self.faces,
            attributes,
            metallic=self.metallic,
            roughness=self.roughness,
            png=self._png(),
        )

    def _obj(self, path: Path) -> dict[Path, bytes]:
        """The three files of an OBJ; it comes last, because it names the others."""
        material, texture = obj_parts(path)
        lines = ["# modalign", f"mtllib {material.name}", "usemtl texture"]
        lines += [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in (self.vertices @ Y_UP.T).tolist()]
        lines += [f"vt {u:.7g} {1 - v:.7g}" for u, v in self.uv.tolist()]  # OBJ counts upwards
        normals = (self.vertex_normals @ Y_UP.T).tolist()
        lines += [f"vn {x:.7g} {y:.7g} {z:.7g}" for x, y, z in normals]
        lines += [f"f {a}/{a}/{a} {b}/{b}/{b} {c}/{c}/{c}" for a, b, c in (self.faces + 1).tolist()]
        shine = "Ka 0 0 0\nKd 1 1 1\nKs 0 0 0\n"
        factors = f"Pm {self.metallic:g}\nPr {self.roughness:g}\n"
        return {
            texture: self._png(),
            material: f"newmtl texture\n{shine}{factors}map_Kd {texture.name}\n".encode(),
            path: ("\n".join(lines) + "\n").encode(),
        }

    @property
    def vertex_normals(self) -> Floats:
        """Unit normals (V, 3)."""
        assert self.normals is not None
        return self.normals

    def _paint(self, corners: Any, weights: Any) -> Any:
        return self.colors_at((self.uv[corners] * weights).sum(axis=1))


def texture_colors(
    texture: NDArray[np.uint8], uv: NDArray[Any], *, repeats: bool = False
) -> Floats:
    """Colours (N, 3) in 0..1 of a texture (H, W, 3) at uv (N, 2), bilinear between texel centres.

    Beyond its edges lies its last texel, or the texture again if it `repeats`.
    """
    height, width = texture.shape[:2]
    at = np.asarray(uv, dtype=np.float64) * (width, height) - 0.5
    low = np.floor(at).astype(np.int64)
    share = at - low
    color = np.zeros((len(at), 3))
    for right in (0, 1):
        for down in (0, 1):
            x, y = (low + (right, down)).T
            if repeats:
                x, y = x % width, y % height
            weight = np.abs(1 - right - share[:, 0]) * np.abs(1 - down - share[:, 1])
            texel = texture[y.clip(0, height - 1), x.clip(0, width - 1)]
            color += weight[:, None] * texel / 255
    return color.astype(np.float32)


def obj_parts(path: Path) -> tuple[Path, Path]:
    """The material and the texture that lie beside an OBJ of a textured mesh."""
    return path.with_suffix(".mtl"), path.with_name(f"{path.stem}_texture.png")


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together, all or none; the order is that of the mapping.

    Raises:
        OSError: one cannot be written; what was there before is untouched, or put back.
    """
    mark = secrets.token_hex(4)
    unfinished = {path: path.with_name(f".{path.name}.{mark}") for path in files}
    before = {path: path.with_name(f".{path.name}.{mark}.before") for path in files}
    done: list[Path] = []
    try:
        for path, content in files.items():
            with open(unfinished[path], "xb") as file:
                file.write(content)
        for path in files:
            if path.exists():
                os.link(path, before[path])
            done.append(path)
            os.replace(unfinished[path], path)
    except BaseException:
        for path in done:
            if before[path].exists():
                os.replace(before[path], path)
            elif not unfinished[path].exists():
                path.unlink(missing_ok=True)
        raise
    finally:
        for path in files:
            unfinished[path].unlink(missing_ok=True)
            before[path].unlink(missing_ok=True)
