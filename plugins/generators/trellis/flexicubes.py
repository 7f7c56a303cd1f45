"""FlexiCubes on sparse voxels: 101 numbers per voxel to a coloured triangle mesh, differentiably.

Only cubes that touch an inside corner matter, so nothing dense is ever built. The case tables are
derived here from what they mean.

Legend: N voxels, V grid vertices, Q cubes, P pairs of a cube and one of its crossing edges,
D dual vertices (the mesh's vertices), F triangles. "Inside" is a negative signed distance.

Source: FlexiCubes (Shen et al. 2023), sec. 3-4; the parametrisation is the released decoder's.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import Fold
from .sparse import Coordinates, SparseTensor

# Corner k of a cube lies at (k & 1, k >> 1 & 1, k >> 2 & 1).
CORNERS = tuple((k & 1, k >> 1 & 1, k >> 2 & 1) for k in range(8))
# The order the per-edge weights come in. Edges run along +x and +z but along -y.
EDGES = (
    *((0, 1), (1, 5), (4, 5), (0, 4)),
    *((2, 3), (3, 7), (6, 7), (2, 6)),
    *((2, 0), (3, 1), (7, 5), (6, 4)),
)
NUM_COLORS = 6  # red, green, blue, and a normal as (n + 1) / 2
# Channels of the raw features: 8 corners each for distance, deformation and colours.
CHANNELS = [8, 24, 21, 8 * NUM_COLORS]
SDF = slice(0, 8)
DEFORM = slice(8, 32)
WEIGHTS = slice(32, 53)  # 12 edges (beta), 8 corners (alpha), 1 cube (gamma)
COLOR = slice(53, 101)
MESH_CHANNELS = sum(CHANNELS)
# Below this many grid vertices a table of all of them (5 bytes each) beats sorting.
DENSE_KEYS = 1 << 26
WEIGHT_SCALE = 0.99  # keeps every weight positive


@dataclass(frozen=True)
class GridAttributes:
    """What the voxels say about the vertices of the grid, averaged over the voxels that share one.

    Attributes:
        coords: (V, 4) int64 = (batch, x, y, z), x from 0 to the resolution; sorted.
        sdf: (V,), inside where negative.
        deform: (V, 3), before the tanh.
        color: (V, 6) in 0..1: RGB, then the normal n as (n + 1) / 2.
    """

    coords: Tensor
    sdf: Tensor
    deform: Tensor
    color: Tensor

    def positions(self, resolution: int) -> Tensor:
        """Where the vertices are, (V, 3) in -0.5..0.5; moved by less than half a cell."""
        limit = (1 - 1e-8) / (2 * resolution)
        return self.coords[:, 1:] / resolution - 0.5 + limit * self.deform.tanh()


@dataclass(frozen=True)
class Surface:
    """A triangle mesh with outward winding, z up, inside -0.5..0.5.

    Attributes:
        vertices: (D, 3).
        faces: (F, 3) int64.
        color: (D, 6) in 0..1: RGB, then the normal n as (n + 1) / 2.
    """

    vertices: Tensor
    faces: Tensor
    color: Tensor


def grid_attributes(raw: SparseTensor, resolution: int) -> GridAttributes:
    """The grid vertices of raw features (N, 101), differentiable; one set for the whole batch."""
    keys, fold = _vertices(raw, resolution)
    # One split: the gradient of each slice alone would be a tensor of the full width.
    sdf, deform, _, color = torch.split(raw.feats, CHANNELS, dim=1)
    corner_feats = torch.cat(
        [sdf.reshape(-1, 1), deform.reshape(-1, 3), color.reshape(-1, NUM_COLORS)], dim=1
    )  # (8N, 10)
    mean = fold.sum(corner_feats) / fold.count
    return GridAttributes(
        coords=_unpack_keys(keys, resolution + 1),
        sdf=mean[:, 0] - 1 / resolution,  # an untrained decoder then starts with everything inside
        deform=mean[:, 1:4],
        color=mean[:, 4:].sigmoid(),
    )


def enclosed(at: Coordinates, resolution: int) -> Tensor:
    """Empty cells (B, R, R, R) that no path along the axes joins to the outside of the grid."""
    shape = (at.batch_size, *(resolution + 2,) * 3)  # a margin that is always outside
    free = torch.ones(shape, dtype=torch.bool, device=at.coords.device)
    batch, x, y, z = at.coords.long().unbind(1)
    free[batch, x + 1, y + 1, z + 1] = False
    outside = torch.zeros_like(free)
    outside[:, 0, 0, 0] = True
    while True:
        grown = outside.clone()
        for axis in (1, 2, 3):
            grown |= outside.roll(1, axis) | outside.roll(-1, axis)
        grown &= free
        if torch.equal(grown, outside):
            return (free & ~outside)[:, 1:-1, 1:-1, 1:-1]
        outside = grown


def extract_surfaces(
    raw: SparseTensor, resolution: int, solid: Tensor | None = None
) -> list[Surface]:
    """One mesh per batch element of raw features (N, 101) on a grid of `resolution` cells a side.

    Meshes may be empty. Vertices and colours are differentiable.

    Args:
        raw: what the decoder says.
        resolution: cells per side of the mesh grid.
        solid: (B, R, R, R) cells of a coarser grid whose vertices count as inside where the
            voxels say nothing; everything unsaid is outside if None.
    """
    grid = grid_attributes(raw, resolution)
    counts = torch.bincount(grid.coords[:, 0], minlength=raw.at.batch_size).tolist()
    columns = (grid.coords, grid.sdf, grid.deform, grid.color)
    surfaces = []
    splits = [torch.split(column, counts) for column in columns]
    cells = [None] * raw.at.batch_size if solid is None else solid.unbind(0)
    for feats, coords, cell, vertex_coords, sdf, deform, color in zip(
        raw.split(),
        torch.split(raw.at.coords, raw.at.segments.counts),
        cells,
        *splits,
        strict=True,
    ):
        element = GridAttributes(vertex_coords, sdf, deform, color)
        cubes = coords[:, 1:].long()
        surfaces.append(_extract(element, cubes, feats[:, WEIGHTS], resolution, cell))
    return surfaces


def _extract(
    grid: GridAttributes,
    voxels: Tensor,
    weights: Tensor,
    resolution: int,
    solid: Tensor | None,
) -> Surface:
    """The surface of one batch element; voxels (N, 3), weights (N, 21), solid (R, R, R)."""
    side, device = resolution + 1, voxels.device
    tables = case_tables(device)
    vertex_keys = _pack_keys(grid.coords[:, 1:], side)
    near = grid.coords[:, 1:] if solid is not None else grid.coords[grid.sdf < 0, 1:]
    cubes = _touching_cubes(near, resolution)
    corner_keys = _pack_keys(cubes, side)[:, None] + _pack_keys(tables.corners, side)
    corner_rows = _find(vertex_keys, corner_keys)  # (Q, 8), V where there are no data
    # Vertices without data are outside, undeformed, grey; cubes without data have zero weights.
    sdf = torch.cat([grid.sdf, grid.sdf.new_ones(1)])[corner_rows]  # (Q, 8)
    if solid is not None:
        cell = (cubes[:, None] + tables.corners) * len(solid) // resolution
        x, y, z = cell.clamp(max=len(solid) - 1).unbind(-1)
        sdf = torch.where((corner_rows == len(vertex_keys)) & solid[x, y, z], -1, sdf)
    case = ((sdf < 0) * tables.bits).sum(dim=1)
    case = _resolve_ambiguous(cubes, case, resolution)
    mixed = (case != 0) & (case != 255)
    cubes, corner_rows, sdf, case = cubes[mixed], corner_rows[mixed], sdf[mixed], case[mixed]

    color = torch.cat([grid.color, grid.color.new_full((1, NUM_COLORS), 0.5)])
    offset = grid.positions(resolution) - (grid.coords[:, 1:] / resolution - 0.5)
    offset = torch.cat([offset, offset.new_zeros(1, 3)])
    voxel_keys, order = _pack_keys(voxels, side).sort()
    row = torch.cat([order, order.new_tensor([len(voxels)])])[
        _find(voxel_keys, _pack_keys(cubes, side))
    ]
    cube_weights = torch.cat([weights, weights.new_zeros(1, weights.shape[1])])[row]  # (Q, 21)
    beta = WEIGHT_SCALE * cube_weights[:, :12].tanh() + 1
    alpha = WEIGHT_SCALE * cube_weights[:, 12:20].tanh() + 1
    gamma = WEIGHT_SCALE * cube_weights[:, 20].sigmoid() + (1 - WEIGHT_SCALE) / 2

    # Every pair of a cube and a crossing edge contributes one point to one dual vertex.
    patch = tables.patch[case]  # (Q, 12), -1 where the edge does not cross
    cube, edge = (patch >= 0).nonzero().unbind(1)  # (P,), cubes rising
    first_dual = tables.num_patches[case].cumsum(0) - tables.num_patches[case]
    dual = first_dual[cube] + patch[cube, edge]  # (P,)
    a, b = tables.edges[edge, 0], tables.edges[edge, 1]
    corner = tables.corners
    weight_a = (sdf[cube, a] * alpha[cube, a])[:, None]
    weight_b = (sdf[cube, b] * alpha[cube, b])[:, None]
    row_a, row_b = corner_rows[cube, a], corner_rows[cube, b]

    def attribute(corner_of: Tensor, row_of: Tensor) -> Tensor:
        place = (cubes[cube] + corner[corner_of]) / resolution - 0.5 + offset[row_of]
        return torch.cat([place, color[row_of]], dim=1)  # (P, 9)

    crossing = (attribute(a, row_a) * weight_b - attribute(b, row_b) * weight_a) / (
        weight_b - weight_a
    )
    share = beta[cube, edge][:, None]
    fold = Fold(dual, edge, len(EDGES), int(tables.num_patches[case].sum()))
    summed = fold.sum(torch.cat([crossing * share, share], dim=1))
    points = summed[:, :-1] / summed[:, -1:]
    faces = _faces(cubes, cube, edge, dual, sdf[cube, a] >= 0, gamma.detach(), side, tables)
    return Surface(points[:, :3], faces, points[:, 3:])


def _touching_cubes(vertices: Tensor, resolution: int) -> Tensor:
    """Cubes (Q, 3) of the grid with a corner among vertices (V, 3), sorted."""
    side = resolution + 1
    cubes = (vertices[:, None] - case_tables(vertices.device).corners).view(-1, 3)
    cubes = cubes[((cubes >= 0) & (cubes < resolution)).all(dim=1)]
    keys, _ = _unique(_pack_keys(cubes, side), side**3)
    return _unpack_keys(keys, side)[:, 1:]


def _resolve_ambiguous(cubes: Tensor, case: Tensor, resolution: int) -> Tensor:
    """Cases, inverted where two cubes would both separate the corners of their shared face.

    A cube with exactly one ambiguous face and at least five inside corners cuts that face one way.
    Where its neighbour across the face is such a cube too, both cut it the other way, or the
    surface would touch itself along an edge.
    """
    step = case_tables(cubes.device).ambiguous_step[case]  # (Q, 3), zeros: not such a case
    is_such = step.any(dim=1)
    neighbour = cubes + step
    in_grid = ((neighbour >= 0) & (neighbour < resolution)).all(dim=1)
    side = resolution + 1
    row = _find(_pack_keys(cubes, side), _pack_keys(neighbour.clamp(0, resolution), side))
    neighbour_is_such = torch.cat([is_such, is_such.new_zeros(1)])[row]
    return torch.where(is_such & in_grid & neighbour_is_such, 255 - case, case)


def _faces(
    cubes: Tensor,
    cube: Tensor,
    edge: Tensor,
    dual: Tensor,
    first_is_outside: Tensor,
    gamma: Tensor,
    side: int,
    tables: CaseTables,
) -> Tensor:
    """Two triangles (F, 3) for every crossing edge that four cubes share."""
    low = cubes[cube] + tables.edge_low[edge]
    edge_key = _pack_keys(low, side) * 3 + tables.edge_axis[edge]
    order = edge_key.argsort(stable=True)  # cubes stay rising within an edge
    _, run, count = torch.unique_consecutive(
        edge_key[order], return_inverse=True, return_counts=True
    )
    order = order[(count == 4)[run]].view(-1, 4)
    outward = torch.tensor([0, 1, 3, 2], device=cubes.device)
    inward = torch.tensor([2, 3, 1, 0], device=cubes.device)
    turn = torch.where(first_is_outside[order[:, :1]], outward, inward)
    order = order.gather(1, turn)
    quad, split = dual[order], gamma[cube[order]]
    along_02 = (split[:, 0] * split[:, 2] > split[:, 1] * split[:, 3])[:, None]
    corners = torch.where(
        along_02,
        torch.tensor([0, 1, 2, 0, 2, 3], device=cubes.device),
        torch.tensor([0, 1, 3, 3, 1, 2], device=cubes.device),
    )
    return quad.gather(1, corners).view(-1, 3)


def _vertices(raw: SparseTensor, resolution: int) -> tuple[Tensor, Fold]:
    """Sorted keys of the corners of all voxels, and how the (8N) voxel corners fold into them."""
    device, side = raw.feats.device, resolution + 1
    corner = _pack_keys(torch.tensor(CORNERS, device=device), side)
    keys = (_pack_keys(raw.at.coords.long(), side)[:, None] + corner).view(-1)  # (8N,)
    unique, parent = _unique(keys, raw.at.batch_size * side**3)
    # A vertex is corner k of one voxel at most.
    place = torch.arange(8, device=device).repeat(len(raw.at))
    return unique, Fold(parent, place, 8, len(unique))


def _unique(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sorted distinct keys, all below `size`, and the row of each of `keys` among them."""
    if size > DENSE_KEYS:
        ordered, parent = torch.unique(keys, return_inverse=True)
        return ordered, parent
    seen = torch.zeros(size, dtype=torch.bool, device=keys.device)
    seen[keys] = True
    unique = seen.nonzero()[:, 0]
    row = torch.empty(size, dtype=torch.int32, device=keys.device)
    row[unique] = torch.arange(len(unique), dtype=torch.int32, device=keys.device)
    return unique, row[keys].long()


def _pack_keys(coords: Tensor, side: int) -> Tensor:
    """One number for (x, y, z) or (batch, x, y, z), rising in lexicographic order."""
    key = coords[:, 0]
    for column in coords.unbind(1)[1:]:
        key = key * side + column
    return key


def _unpack_keys(keys: Tensor, side: int) -> Tensor:
    """(K, 4) = (batch, x, y, z) of keys (K,)."""
    columns = [keys // side**3, keys // side**2 % side, keys // side % side, keys % side]
    return torch.stack(columns, dim=1)


def _find(keys: Tensor, wanted: Tensor) -> Tensor:
    """Row of each wanted key in `keys`, which are sorted; len(keys) where it is missing."""
    if len(keys) == 0:
        return torch.zeros_like(wanted)
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where(keys[place] == wanted, place, len(keys))


@dataclass(frozen=True)
class CaseTables:
    """What the 256 inside-outside patterns of a cube imply; bit k of a case: corner k is inside.

    Attributes:
        corners: (8, 3) places of the corners.
        bits: (8,) what an inside corner adds to the case.
        edges: (12, 2) corners of the edges.
        edge_low: (12, 3) the corner of each edge with the smaller coordinates.
        edge_axis: (12,) the axis each edge runs along.
        patch: (256, 12) which patch of surface crosses an edge, -1 where none does.
        num_patches: (256,).
        ambiguous_step: (256, 3) towards the one ambiguous face, for the 36 cases that have exactly
            one and at least five inside corners; zeros for the others.
    """

    corners: Tensor
    bits: Tensor
    edges: Tensor
    edge_low: Tensor
    edge_axis: Tensor
    patch: Tensor
    num_patches: Tensor
    ambiguous_step: Tensor


@functools.cache
def case_tables(device: torch.device) -> CaseTables:
    """The tables, on a device."""
    steps, patches = zip(*(_case(case) for case in range(256)), strict=True)
    low = [[min(CORNERS[a][i], CORNERS[b][i]) for i in range(3)] for a, b in EDGES]
    axis = [next(i for i in range(3) if CORNERS[a][i] != CORNERS[b][i]) for a, b in EDGES]
    patch = torch.tensor(patches, device=device)
    return CaseTables(
        corners=torch.tensor(CORNERS, device=device),
        bits=2 ** torch.arange(8, device=device),
        edges=torch.tensor(EDGES, device=device),
        edge_low=torch.tensor(low, device=device),
        edge_axis=torch.tensor(axis, device=device),
        patch=patch,
        num_patches=patch.amax(dim=1) + 1,
        ambiguous_step=torch.tensor(steps, device=device),
    )


def _case(case: int) -> tuple[list[int], list[int]]:
    """Step to the one ambiguous face (or zeros) and the patch of each edge, of one case."""
    inside = [bool(case >> k & 1) for k in range(8)]
    crossing = [inside[a] != inside[b] for a, b in EDGES]
    label = list(range(12))  # edges with equal label belong to one patch

    def join(first: int, second: int) -> None:
        old, new = label[second], label[first]
        label[:] = [new if value == old else value for value in label]

    ambiguous = []
    for axis in range(3):
        for end in (0, 1):
            on_face = [corner[axis] == end for corner in CORNERS]
            edges = [
                e for e, (a, b) in enumerate(EDGES) if on_face[a] and on_face[b] and crossing[e]
            ]
            if len(edges) == 2:
                join(*edges)
            elif len(edges) == 4:
                step = [0, 0, 0]
                step[axis] = 2 * end - 1
                ambiguous.append(step)
                for corner in range(8):
                    if on_face[corner] and inside[corner]:
                        join(*(e for e in edges if corner in EDGES[e]))
    labels = sorted({label[e] for e in range(12) if crossing[e]})
    patch = [labels.index(label[e]) if crossing[e] else -1 for e in range(12)]
    is_such = len(ambiguous) == 1 and sum(inside) >= 5
    return (ambiguous[0] if is_such else [0, 0, 0]), patch
