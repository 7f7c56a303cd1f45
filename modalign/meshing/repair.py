"""Meshes without what disturbs: degenerate triangles, hidden faces, small holes, too many faces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from modalign.assets import Mesh
from modalign.meshing.libraries import library
from modalign.meshing.spreading import edges, spread
from modalign.rendering.cameras import NEAR_FOV, NEAR_RADIUS, sphere
from modalign.rendering.rasteriser import intersector

if TYPE_CHECKING:
    from numpy.typing import NDArray

# TRELLIS fills loops of up to 250 sqrt(1 - 0.95) edges with its default of 95 % fewer faces.
HOLE_EDGES = 56
# A triangle below this share of the squared diagonal is a line or a point in float32.
DEGENERATE = 1e-12
# TRELLIS takes 1,000 looks of 1,024 pixels, from the same distance.
LOOKS, PIXELS = 100, 256
RINGS = 2  # faces this near to a seen one count as seen: small ones fall between pixels


def areas(mesh: Mesh) -> NDArray[np.float64]:
    """Areas (F,) of the faces."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]].astype(np.float64) for k in range(3))
    area: NDArray[np.float64] = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    return area


def keep_faces(mesh: Mesh, keep: NDArray[np.bool_]) -> Mesh:
    """The mesh of the faces `keep` (F,) and the vertices that they use."""
    faces = mesh.faces[keep]
    used = np.unique(faces)
    normals = None if mesh.normals is None else mesh.normals[used]
    return Mesh(
        mesh.vertices[used], np.searchsorted(used, faces), mesh.vertex_colors[used], normals
    )


def clean(mesh: Mesh) -> Mesh:
    """The mesh without triangles that have no area, triangles given twice, and unused vertices.

    Raises:
        ValueError: nothing is left.
    """
    if len(mesh.faces) == 0:
        raise ValueError("the mesh has no faces")
    area = areas(mesh)
    size = np.square(np.ptp(mesh.vertices[mesh.faces.ravel()].astype(np.float64), axis=0)).sum()
    keep = area > DEGENERATE * size
    if not keep.any():
        raise ValueError(
            f"the mesh has no area: each of its {len(area)} triangles is a line or a point"
        )
    _, first = np.unique(np.sort(mesh.faces, axis=1), axis=0, return_index=True)
    once = np.zeros(len(area), dtype=bool)
    once[first] = True
    return keep_faces(mesh, keep & once)


def simplify(mesh: Mesh, *, faces: int | None = None, ratio: float | None = None) -> Mesh:
    """The mesh with about `faces` faces, or `ratio` of its own, by quadric edge collapse.

    Each vertex that stays has the colour of the nearest of those that collapsed into it.

    Raises:
        ModalignError: fast-simplification is not installed.
        ValueError: not exactly one of `faces` (4 or more) and `ratio` (above 0, up to 1) is given.
    """
    if (faces is None) == (ratio is None):
        raise ValueError("say how far to simplify: either faces=... or ratio=...")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio is the share of faces to keep, above 0 and up to 1, got {ratio}")
    count = faces if faces is not None else round((ratio or 1) * len(mesh.faces))
    if faces is not None and faces < 4:
        raise ValueError(f"a mesh has at least 4 faces, faces={faces} was asked for")
    if count >= len(mesh.faces):
        return mesh
    module = library("fast_simplification", "simplifying a mesh")
    triangles = mesh.faces.astype(np.int32)
    *_, collapses = module.simplify(
        mesh.vertices, triangles, target_count=max(count, 4), return_collapses=True
    )
    vertices, triangles, into = module.replay_simplification(mesh.vertices, triangles, collapses)
    distance = np.linalg.norm(mesh.vertices - vertices[into], axis=1)
    order = np.lexsort((distance, into))
    _, first = np.unique(into[order], return_index=True)
    return clean(Mesh(vertices, triangles, mesh.vertex_colors[order[first]]))


def remove_hidden(mesh: Mesh, *, looks: int = LOOKS) -> Mesh:
    """The mesh without the faces that nobody sees from outside, such as shells inside of it.

    A face stays if one of `looks` cameras around it sees it, or a face that is two rings of
    neighbours away: what hangs on the outside keeps a rim. TRELLIS cuts by graph cuts, and looks
    ten times as often at four times the width; this has no threshold on the area of the cut.

    Raises:
        ValueError: the mesh has no faces.
    """
    if len(mesh.faces) == 0:
        raise ValueError("the mesh has no faces")
    centre = (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2
    extent = max(float(np.linalg.norm(mesh.vertices - centre, axis=1).max()), 1e-12)
    inside = NEAR_RADIUS * np.sin(NEAR_FOV / 2)  # what every camera sees all of
    intersect = intersector(((mesh.vertices - centre) * (inside / extent)), mesh.faces)
    seen = np.zeros(len(mesh.faces), dtype=bool)
    for camera in sphere(looks):
        triangle, _ = intersect(camera, PIXELS)
        seen[triangle[triangle >= 0]] = True
        if seen.all():
            return mesh
    for _ in range(RINGS):
        near = np.zeros(len(mesh.vertices), dtype=bool)
        near[mesh.faces[seen]] = True
        seen |= near[mesh.faces].any(axis=1)
    return mesh if seen.all() else keep_faces(mesh, seen)


def fill_holes(mesh: Mesh, *, max_edges: int = HOLE_EDGES) -> Mesh:
    """The mesh with holes of up to `max_edges` edges closed; new vertices take colours around them.

    Edges of more than two faces are cut open first, and triangles turned to agree with each other.

    Raises:
        ModalignError: pymeshfix is not installed.
        ValueError: the mesh has no faces, or `max_edges` is below 3.
    """
    if len(mesh.faces) == 0:
        raise ValueError("the mesh has no faces")
    if max_edges < 3:
        raise ValueError(f"a hole has at least 3 edges, max_edges={max_edges} was asked for")
    if not open_edges(mesh).any():
        return mesh
    fixer = library("pymeshfix", "filling holes").PyTMesh()
    fixer.set_quiet(True)
    fixer.load_array(mesh.vertices.astype(np.float64), mesh.faces.astype(np.int32))
    fixer.fill_small_boundaries(max_edges, True)
    vertices, faces = (np.asarray(array) for array in fixer.return_arrays())
    if not len(faces):
        return mesh
    vertices = vertices.astype(np.float32)
    faces = faces.astype(np.int64)
    if _volume(vertices, faces) * _volume(mesh.vertices, mesh.faces) < 0:
        faces = faces[:, ::-1]
    # The same vertex is the same three numbers: only copies are moved about.
    _, where = np.unique(np.concatenate([mesh.vertices, vertices]), axis=0, return_inverse=True)
    where = where.ravel()
    owner = np.full(where.max() + 1, -1)
    owner[where[: len(mesh.vertices)]] = np.arange(len(mesh.vertices))
    owner = owner[where[len(mesh.vertices) :]]
    colors = spread(mesh.vertex_colors[owner], owner >= 0, faces)
    return Mesh(vertices, faces, colors)


def open_edges(mesh: Mesh) -> NDArray[np.bool_]:
    """Of the distinct edges, which have one face only."""
    _, count = np.unique(np.sort(edges(mesh.faces), axis=1), axis=0, return_counts=True)
    single: NDArray[np.bool_] = count == 1
    return single


def _volume(vertices: NDArray[np.float32], faces: NDArray[np.int64]) -> float:
    """Signed volume around the mean vertex, positive when triangles are turned outward."""
    a, b, c = np.moveaxis(vertices[faces].astype(np.float64) - vertices.mean(axis=0), 1, 0)
    return float((np.cross(a, b) * c).sum() / 6)
