"""Dual grids to surfaces and materials, against surfaces built by hand.

No output of the reference exists to compare with: expected numbers are geometry.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import trimesh
from modalign_plugins.generators.trellis.sparse import Coordinates, SparseTensor
from modalign_plugins.generators.trellis.trellis2.dual_grid import (
    DualGrid,
    components,
    extract_faces,
    facing_outward,
    split_quads,
)
from modalign_plugins.generators.trellis.trellis2.generator import as_mesh
from modalign_plugins.generators.trellis.trellis2.material import MaterialMesh, sample_material

from modalign.assets import linear_from_srgb

SIDE = 24


def logit(p):
    return torch.log(p / (1 - p))


def dual_grid_of(inside, vertex_of):
    """The features (N, 7) of a solid: cut edges from its corners, vertices as given.

    Written as loops over edges, from the definition alone. `inside` (R + 1, R + 1, R + 1) is of
    grid corners, `vertex_of` maps voxel corners (N, 3) to points (N, 3) in voxel units.
    """
    cut, voxels = {}, set()
    for axis in range(3):
        ends = np.argwhere(inside != np.roll(inside, -1, axis=axis))
        for corner in map(tuple, ends):
            others = [other for other in range(3) if other != axis]
            owner = np.array(corner)
            owner[others] -= 1
            cut.setdefault(tuple(owner), set()).add(axis)
            for a in (0, 1):
                for b in (0, 1):
                    near = owner.copy()
                    near[others[0]] += a
                    near[others[1]] += b
                    voxels.add(tuple(near))
    coords = torch.tensor(sorted(voxels))
    feats = torch.zeros(len(coords), 7)
    offset = vertex_of(coords) - coords
    feats[:, :3] = logit(((offset + 0.5) / 2).clamp(1e-6, 1 - 1e-6))
    for row, voxel in enumerate(map(tuple, coords.tolist())):
        for axis in range(3):
            feats[row, 3 + axis] = 1.0 if axis in cut.get(voxel, ()) else -1.0
    coords = torch.cat([torch.zeros(len(coords), 1, dtype=torch.long), coords], dim=1)
    return SparseTensor(Coordinates(coords), feats)


def corners(function):
    axis = torch.arange(SIDE + 1).float()
    return function(torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)).numpy()


def ball(centre, radius):
    """A ball whose vertices are voxel centres pushed onto the sphere."""

    def onto(coords):
        direction = coords + 0.5 - centre
        return centre + radius * direction / direction.norm(dim=1, keepdim=True)

    return dual_grid_of(corners(lambda p: (p - centre).norm(dim=-1) < radius), onto)


def box(low, high):
    """A box between half-integer planes, through voxel centres: vertices reproduce it exactly."""
    low, high = torch.tensor(low), torch.tensor(high)
    solid = corners(lambda p: ((p > low) & (p < high)).all(dim=-1))
    return dual_grid_of(solid, lambda coords: (coords + 0.5).clamp(low, high))


def surface_of(voxels):
    grid, faces = extract_faces(voxels)
    vertices = (voxels.at.coords[:, 1:] + grid.offset).double().numpy()
    return trimesh.Trimesh(vertices, faces.numpy(), process=False)


def test_a_box_is_closed_faces_outward_and_has_its_area_and_volume():
    """Of 10 x 6 x 4 voxels: area 2 (60 + 40 + 24), volume 240, Euler characteristic 2."""
    surface = surface_of(box((4.5, 6.5, 8.5), (14.5, 12.5, 12.5)))
    assert surface.is_watertight
    assert surface.is_winding_consistent
    assert surface.area == pytest.approx(2 * (60 + 40 + 24), rel=1e-5)
    assert surface.volume == pytest.approx(240, rel=1e-5)
    used = np.unique(surface.faces)
    assert len(used) - len(surface.edges_unique) + len(surface.faces) == 2


def test_a_ball_is_closed_faces_outward_and_has_nearly_its_area_and_volume():
    """Chords lie inside: a sphere of radius 9 is approached from below, to about 1 / 9^2."""
    centre = torch.tensor([12.1, 11.9, 12.3])
    surface = surface_of(ball(centre, 9.0))
    assert surface.is_watertight
    assert surface.is_winding_consistent
    assert 0.97 < surface.area / (4 * math.pi * 81) < 1
    assert 0.97 < surface.volume / (4 / 3 * math.pi * 729) < 1
    outward = surface.triangles_center - centre.numpy()
    assert ((surface.face_normals * outward).sum(axis=1) > 0).all()


def test_two_bodies_face_outward_each():
    one, two = box((2.5, 2.5, 2.5), (8.5, 7.5, 6.5)), box((12.5, 12.5, 12.5), (20.5, 18.5, 16.5))
    voxels = SparseTensor(
        Coordinates(torch.cat([one.at.coords, two.at.coords])), torch.cat([one.feats, two.feats])
    )
    surface = surface_of(voxels)
    assert surface.is_winding_consistent
    assert surface.volume == pytest.approx(6 * 5 * 4 + 8 * 6 * 4, rel=1e-5)


def test_faces_do_not_depend_on_the_order_of_voxels():
    voxels = box((4.5, 6.5, 8.5), (9.5, 12.5, 12.5))
    order = torch.randperm(len(voxels.at), generator=torch.Generator().manual_seed(0))
    shuffled = SparseTensor(Coordinates(voxels.at.coords[order]), voxels.feats[order])
    centres = [
        np.sort(surface_of(each).triangles_center.round(4), axis=0) for each in (voxels, shuffled)
    ]
    np.testing.assert_array_equal(*centres)


@pytest.mark.parametrize("seed", range(3))
def test_turned_triangles_are_turned_back(seed):
    """Any winding of a closed surface becomes the outward one."""
    voxels = box((4.5, 6.5, 8.5), (9.5, 12.5, 12.5))
    grid, faces = extract_faces(voxels)
    vertices = voxels.at.coords[:, 1:] + grid.offset
    turn = torch.rand(len(faces), 1, generator=torch.Generator().manual_seed(seed)) < 0.5
    turned = facing_outward(vertices, torch.where(turn, faces.flip(1), faces))
    solid = trimesh.Trimesh(vertices.double().numpy(), turned.numpy(), process=False)
    assert solid.is_winding_consistent
    assert solid.volume == pytest.approx(5 * 6 * 4, rel=1e-5)


def test_a_strip_with_one_side_is_left_in_one_piece():
    """A Moebius strip of 7 triangles: no turning makes neighbours agree, and none is tried."""
    ring = torch.arange(7)
    faces = torch.stack([ring, (ring + 1) % 7, (ring + 2) % 7], dim=1)
    angle = ring * math.tau / 7
    vertices = torch.stack([angle.cos(), angle.sin(), (ring % 2).float()], dim=1)
    turned = facing_outward(vertices, faces)
    assert torch.equal(turned, faces) or torch.equal(turned, faces.flip(1))


def test_components_are_those_of_a_search():
    """Against a depth-first search, on random graphs around the density where pieces merge."""
    draw = torch.Generator().manual_seed(0)
    for edges in (0, 20, 40, 80):
        left, right = torch.randint(0, 60, (2, edges), generator=draw)
        around = {node: set() for node in range(60)}
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            around[a].add(b)
            around[b].add(a)
        expected = [-1] * 60
        for node in range(60):
            todo = [node] if expected[node] < 0 else []
            while todo:
                here = todo.pop()
                expected[here] = node
                todo += [other for other in around[here] if expected[other] < 0]
        assert components(left, right, 60).tolist() == expected


def test_a_quad_is_cut_where_the_product_of_weights_is_larger():
    rows = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    assert split_quads(rows, torch.tensor([2.0, 1.0, 2.0, 1.0])).tolist() == [
        *([0, 1, 2], [0, 2, 3]),  # 0 and 2 are the heavy ones
        *([3, 2, 0], [0, 2, 1]),  # the same two are now corners 1 and 3
    ]


def test_an_edge_without_all_its_voxels_makes_no_face():
    voxels = box((4.5, 6.5, 8.5), (9.5, 12.5, 12.5))
    _, whole = extract_faces(voxels)
    kept = slice(1, None)
    holed = SparseTensor(Coordinates(voxels.at.coords[kept]), voxels.feats[kept])
    _, faces = extract_faces(holed)
    assert 0 < len(faces) < len(whole)


def test_seven_numbers_mean_a_vertex_three_edges_and_a_weight():
    feats = torch.tensor([[0.0, 50.0, -50.0, 1.0, -1.0, 0.0, 0.0]])
    grid = DualGrid.of(feats)
    torch.testing.assert_close(grid.offset, torch.tensor([[0.5, 1.5, -0.5]]))
    assert grid.crossed.tolist() == [[True, False, False]]
    assert grid.split.item() == pytest.approx(math.log(2))


def block(side):
    axis = torch.arange(side)
    xyz = torch.cartesian_prod(axis, axis, axis)
    return Coordinates(torch.cat([torch.zeros(side**3, 1, dtype=torch.long), xyz], dim=1)), xyz


def test_a_linear_field_is_sampled_exactly():
    """Trilinear weights reproduce what is linear in the place of a voxel's centre."""
    at, xyz = block(5)
    slope = torch.tensor([[0.1, -0.2], [0.3, 0.05], [-0.4, 0.25]])
    voxels = SparseTensor(at, (xyz + 0.5) @ slope)
    inner = ((xyz > 0) & (xyz < 4)).all(dim=1).nonzero()[:, 0]
    offset = torch.rand(len(inner), 3, generator=torch.Generator().manual_seed(0)) * 2 - 0.5
    expected = (xyz[inner] + offset) @ slope
    torch.testing.assert_close(sample_material(voxels, inner, offset), expected)


def test_absent_voxels_leave_their_weight_to_the_others():
    """Half way between two voxels of which one exists; and at a place whose only voxel is gone."""
    at = Coordinates(torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 5, 5]]))
    voxels = SparseTensor(at, torch.tensor([[1.0], [3.0], [7.0]]))
    rows = torch.tensor([0, 0, 1, 2])
    offset = torch.tensor([[1.0, 0.5, 0.5], [0.75, 0.5, 0.9], [1.0, 0.5, 0.5], [1.5, 0.5, 0.5]])
    # (1 + 3) / 2; (0.75 * 1 + 0.25 * 3) whatever the height; 3 alone; at weight 0: its own.
    expected = torch.tensor([[2.0], [1.5], [3.0], [7.0]])
    torch.testing.assert_close(sample_material(voxels, rows, offset), expected)


def test_a_mesh_takes_each_material_channel_from_its_place():
    voxels = box((4.5, 6.5, 8.5), (9.5, 12.5, 12.5))
    material = torch.tensor([-1.0, -0.5, 3.0, 0.5, 0.8, -0.2]).expand(len(voxels.at), -1)
    mesh = as_mesh(voxels, voxels.replace(material), resolution=SIDE)
    np.testing.assert_allclose(mesh.vertex_colors, np.tile([0, 0.25, 1], (len(mesh.vertices), 1)))
    for array, value in ((mesh.metallic, 0.75), (mesh.roughness, 0.9), (mesh.alpha, 0.4)):
        np.testing.assert_allclose(array, value, rtol=1e-6)
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    np.testing.assert_allclose(low, np.array([4.5, 6.5, 8.5]) / SIDE - 0.5, atol=1e-5)
    np.testing.assert_allclose(high, np.array([9.5, 12.5, 12.5]) / SIDE - 0.5, atol=1e-5)


TRIANGLE = {
    "vertices": np.array([[0.1, 0.2, 0.3], [0.4, 0.1, 0.0], [0.0, 0.4, 0.2]], dtype=np.float32),
    "faces": np.array([[0, 1, 2]]),
    "vertex_colors": np.full((3, 3), 0.5, dtype=np.float32),
    "metallic": np.array([0.0, 0.5, 1.0], dtype=np.float32),
    "roughness": np.array([0.2, 0.2, 0.8], dtype=np.float32),
    "alpha": np.array([1.0, 1.0, 0.5], dtype=np.float32),
}


def gltf_json(content):
    length = int.from_bytes(content[12:16], "little")
    return json.loads(content[20 : 20 + length])


def test_a_glb_carries_colour_alpha_factors_and_attributes(tmp_path):
    mesh = MaterialMesh(**TRIANGLE)
    mesh.save(tmp_path / "a.glb")
    mesh.save(tmp_path / "b.glb")
    content = (tmp_path / "a.glb").read_bytes()
    assert content == (tmp_path / "b.glb").read_bytes()
    tree = gltf_json(content)
    (primitive,) = tree["meshes"][0]["primitives"]
    material = tree["materials"][primitive["material"]]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == pytest.approx(0.5)
    assert material["pbrMetallicRoughness"]["roughnessFactor"] == pytest.approx(0.4)
    assert material["alphaMode"] == "BLEND"
    (read,) = trimesh.load(tmp_path / "a.glb", process=False).geometry.values()
    np.testing.assert_allclose(np.ravel(read.vertex_attributes["_METALLIC"]), mesh.metallic)
    np.testing.assert_allclose(np.ravel(read.vertex_attributes["_ROUGHNESS"]), mesh.roughness)
    grey = round(float(linear_from_srgb(np.float32(0.5))) * 255)
    color = read.visual.vertex_attributes["color"]
    assert color.tolist() == [[grey] * 3 + [255]] * 2 + [[grey] * 3 + [128]]
    x, y, z = mesh.vertices.T
    np.testing.assert_allclose(read.vertices, np.column_stack([x, z, -y]), atol=1e-6)


def test_an_opaque_surface_is_written_as_opaque(tmp_path):
    MaterialMesh(**TRIANGLE | {"alpha": np.ones(3)}).save(tmp_path / "a.glb")
    assert gltf_json((tmp_path / "a.glb").read_bytes())["materials"][0]["alphaMode"] == "OPAQUE"


def test_other_formats_are_those_of_any_mesh(tmp_path):
    mesh = MaterialMesh(**TRIANGLE)
    mesh.save(tmp_path / "a.ply")
    mesh.preview(tmp_path / "a.png")
    assert (tmp_path / "a.ply").stat().st_size > 0
    with pytest.raises(ValueError, match="unknown extension"):
        mesh.save(tmp_path / "a.stl")
    with pytest.raises(ValueError, match="no faces"):
        MaterialMesh(**TRIANGLE | {"faces": np.zeros((0, 3), dtype=np.int64)}).save(
            tmp_path / "b.glb"
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"metallic": np.zeros(2)}, r"metallic must be \(3,\), one number per vertex"),
        ({"alpha": np.full(3, 1.5)}, r"alpha must lie in 0..1"),
        ({"roughness": np.full(3, np.nan)}, r"roughness must lie in 0..1"),
        ({"vertices": np.zeros((3, 2))}, "vertices must be"),
    ],
)
def test_a_material_that_does_not_fit_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MaterialMesh(**TRIANGLE | wrong)
