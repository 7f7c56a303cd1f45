"""FlexiCubes: case tables, and surfaces of known shapes. Golden entries compare the numbers."""

from __future__ import annotations

import math

import pytest
import torch
from modalign_plugins.generators.trellis import flexicubes
from modalign_plugins.generators.trellis.flexicubes import (
    CORNERS,
    MESH_CHANNELS,
    SDF,
    enclosed,
    extract_surfaces,
    grid_attributes,
)
from modalign_plugins.generators.trellis.sparse import Coordinates, SparseTensor

RADIUS = 0.35


def ball(resolution, shell=math.inf, stretch=(1.0, 1.3, 0.8), batch=1):
    """Raw features of an ellipsoid; voxels no deeper inside than `shell`, in world units."""
    cells = torch.cartesian_prod(*[torch.arange(resolution)] * 3)
    corners = (cells[:, None] + torch.tensor(CORNERS)) / resolution - 0.5  # (N, 8, 3)
    distance = (corners * torch.tensor(stretch)).norm(dim=-1) - RADIUS
    kept = (distance.amin(1) < 1.5 / resolution) & (distance.amax(1) > -shell)
    cells, distance, corners = cells[kept], distance[kept], corners[kept]
    raw = torch.zeros(len(cells), MESH_CHANNELS)
    raw[:, SDF] = distance + 1 / resolution
    raw[:, flexicubes.COLOR] = torch.cat([corners * 4, corners], dim=-1).flatten(1)
    coords = torch.cat([torch.zeros(len(cells), 1), cells], dim=1)
    coords = torch.cat([coords + torch.tensor([k, 0, 0, 0]) for k in range(batch)])
    return SparseTensor.from_coords(coords.int(), raw.repeat(batch, 1))


def volume(surface):
    a, b, c = surface.vertices[surface.faces].double().unbind(1)
    return (a * torch.linalg.cross(b, c)).sum().item() / 6


def open_edges(surface):
    """Edges not used exactly once in each direction; none on a closed, oriented surface."""
    used = {}
    for a, b, c in surface.faces.tolist():
        for edge in ((a, b), (b, c), (c, a)):
            used[edge] = used.get(edge, 0) + 1
    return [edge for edge, times in used.items() if times != used.get(edge[::-1], 0)]


@pytest.fixture(scope="module")
def surface():
    (surface,) = extract_surfaces(ball(32), 32)
    return surface


def test_a_ball_is_closed_and_wound_outwards(surface):
    """The volume is positive only if faces are counter-clockwise from outside."""
    assert open_edges(surface) == []
    assert volume(surface) == pytest.approx(4 / 3 * math.pi * RADIUS**3 / (1.3 * 0.8), rel=0.01)


def test_vertices_lie_on_the_surface_and_carry_its_colours(surface):
    on = (surface.vertices * torch.tensor([1.0, 1.3, 0.8])).norm(dim=1)
    assert (on - RADIUS).abs().max() < 0.02
    expected = (surface.vertices * 4).sigmoid()
    assert (surface.color[:, :3] - expected).abs().max() < 0.02


def test_batch_elements_are_extracted_apart(surface):
    for twin in extract_surfaces(ball(32, batch=2), 32):
        torch.testing.assert_close(twin.vertices, surface.vertices)
        assert torch.equal(twin.faces, surface.faces)


def test_a_shell_of_voxels_has_an_inner_wall_unless_its_cavity_is_solid(surface):
    raw = ball(32, shell=0.1)
    (hollow,) = extract_surfaces(raw, 32)
    assert volume(hollow) < 0.9 * volume(surface)
    (filled,) = extract_surfaces(raw, 32, enclosed(raw.at, 32))
    assert torch.equal(filled.faces, surface.faces)
    torch.testing.assert_close(filled.vertices, surface.vertices)


def test_enclosed_cells_are_those_no_path_reaches():
    cells = torch.cartesian_prod(*[torch.arange(5)] * 3)
    wall = ((cells == 0) | (cells == 4)).any(dim=1)
    box = torch.cat([torch.zeros(len(cells), 1), cells], dim=1).int()[wall]
    assert enclosed(Coordinates(box), 5).sum() == 27
    leaky = box[(box != torch.tensor([0, 2, 2, 0])).any(dim=1)]
    assert enclosed(Coordinates(leaky), 5).sum() == 0


def test_nothing_inside_gives_an_empty_mesh():
    raw = ball(8)
    (nothing,) = extract_surfaces(raw.replace(raw.feats.abs() + 1), 8)
    assert len(nothing.vertices) == len(nothing.faces) == 0


def test_grid_attributes_average_over_the_voxels_that_share_a_vertex():
    """Two neighbouring voxels share a face of four corners."""
    raw = torch.zeros(2, MESH_CHANNELS)
    raw[0, SDF], raw[1, SDF] = 1.0, 3.0
    x = SparseTensor.from_coords(torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]]), raw)
    grid = grid_attributes(x, 4)
    assert len(grid.coords) == 12
    expected = torch.tensor([1.0, 2.0, 3.0])[grid.coords[:, 1]] - 1 / 4
    torch.testing.assert_close(grid.sdf, expected)
    torch.testing.assert_close(grid.color, torch.full((12, 6), 0.5))


def test_tables_and_sorting_find_the_same_vertices(monkeypatch):
    raw = ball(8, batch=2)
    by_table = grid_attributes(raw, 8)
    monkeypatch.setattr(flexicubes, "DENSE_KEYS", 0)
    by_sorting = grid_attributes(raw, 8)
    assert torch.equal(by_table.coords, by_sorting.coords)
    assert torch.equal(by_table.sdf, by_sorting.sdf)


def test_gradients_flow_from_vertices_and_colours_to_every_kind_of_channel():
    raw = ball(8)
    draw = torch.Generator().manual_seed(0)
    feats = (raw.feats + 0.01 * torch.randn(raw.feats.shape, generator=draw)).requires_grad_()
    (surface,) = extract_surfaces(raw.replace(feats), 8)
    (surface.vertices.square().sum() + surface.color.square().sum()).backward()
    gamma = flexicubes.WEIGHTS.stop - 1  # only chooses a diagonal
    for part in (SDF, flexicubes.DEFORM, slice(32, gamma), flexicubes.COLOR):
        assert feats.grad[:, part].abs().sum() > 0


def test_vertices_have_the_gradients_of_finite_differences():
    raw = ball(6)
    draw = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(raw.feats.shape, generator=draw)
    feats = (raw.feats + noise).double().requires_grad_()

    def vertices(feats):
        (surface,) = extract_surfaces(raw.replace(feats), 6)
        return surface.vertices, surface.color

    assert torch.autograd.gradcheck(vertices, (feats,), fast_mode=True, atol=1e-4)


def test_a_patch_separates_corners_in_every_case():
    """Both ends of a crossing edge differ in sign, and opposite cases cross the same edges."""
    tables = flexicubes.case_tables(torch.device("cpu"))
    for case in range(256):
        crosses = [bool(case >> a & 1) != bool(case >> b & 1) for a, b in flexicubes.EDGES]
        assert (tables.patch[case] >= 0).tolist() == crosses
        assert (tables.patch[255 - case] >= 0).tolist() == crosses
        for patch in range(int(tables.num_patches[case])):
            assert (tables.patch[case] == patch).sum() >= 3


def test_36_cases_may_be_inverted():
    """One ambiguous face and at least five inside corners: counted in the reference's facts."""
    tables = flexicubes.case_tables(torch.device("cpu"))
    assert tables.ambiguous_step.any(dim=1).sum() == 36
    assert tables.num_patches.max() == 4
