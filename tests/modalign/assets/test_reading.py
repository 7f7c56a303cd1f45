"""Meshes read from files: what was written comes back, and what others write is understood."""

from __future__ import annotations

import io

import numpy as np
import pytest
import trimesh
from PIL import Image
from trimesh.visual import ColorVisuals
from trimesh.visual.material import PBRMaterial
from trimesh.visual.texture import TextureVisuals

from modalign import Mesh
from modalign.assets import PaintedMesh, read_mesh
from modalign.assets.mesh import srgb_from_linear
from modalign.rendering.cameras import evaluation
from tests.modalign.boxes import coloured, painted

CAMERAS = evaluation(4)
HALF = 0.5 / 0.3  # the box's side is 0.6


def enlarged(mesh):
    """The same with its longest side 1, as it is read."""
    changes = {"vertices": mesh.vertices * HALF}
    return type(mesh)(**(vars(mesh) | changes))


def pictures(mesh):
    return mesh.render(cameras=CAMERAS, size=48).astype(int)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_vertex_colours_come_back(tmp_path, suffix):
    coloured().save(tmp_path / f"box{suffix}")
    found, placement = read_mesh(tmp_path / f"box{suffix}")
    assert placement.scale == pytest.approx(HALF, rel=1e-6)
    np.testing.assert_allclose(placement.offset, 0, atol=1e-6)
    np.testing.assert_allclose(found.vertices, coloured().vertices * HALF, atol=1e-6)
    np.testing.assert_allclose(found.vertex_colors, coloured().vertex_colors, atol=0.5 / 255)
    np.testing.assert_allclose(found.vertex_normals, coloured().vertex_normals, atol=1e-5)
    assert np.abs(pictures(found) - pictures(enlarged(coloured()))).max() <= 1


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_a_texture_comes_back(tmp_path, suffix):
    painted().save(tmp_path / f"box{suffix}")
    found, _ = read_mesh(tmp_path / f"box{suffix}")
    assert np.array_equal(found.textures[0], painted().texture)
    assert np.abs(pictures(found) - pictures(enlarged(painted()))).max() <= 1


def test_parts_of_a_scene_keep_their_places_and_materials(tmp_path):
    """A red box by its base colour below a box with a picture, which stands 2 above, mirrored."""
    texture = Image.new("RGB", (4, 4), (0, 128, 255))
    below, above = trimesh.creation.box(), trimesh.creation.box()
    below.visual = TextureVisuals(material=PBRMaterial(baseColorFactor=[128, 0, 0, 255]))
    above.visual = TextureVisuals(
        uv=np.full((8, 2), 7.25), material=PBRMaterial(baseColorTexture=texture)
    )
    scene = trimesh.Scene()
    scene.add_geometry(below)
    move = np.diag([-1.0, 1.0, 1.0, 1.0])
    move[1, 3] = 2.0  # y is up in the file
    scene.add_geometry(above, transform=move)
    (tmp_path / "two.glb").write_bytes(scene.export(file_type="glb"))
    found, placement = read_mesh(tmp_path / "two.glb")
    assert placement.scale == pytest.approx(1 / 3)
    assert placement.offset == pytest.approx((0, 0, -1 / 3))
    assert np.ptp(found.vertices, axis=0) == pytest.approx([1 / 3, 1 / 3, 1])
    red = [float(srgb_from_linear(np.array(128 / 255))), 0, 0]
    for camera in CAMERAS:
        layers = found.layers(camera, 64, supersampling=1)
        inside = layers.mask == 1
        high = inside & (np.arange(64)[:, None] < 16)
        low = inside & (np.arange(64)[:, None] > 48)
        np.testing.assert_allclose(layers.albedo[high], [[0, 128 / 255, 1]] * high.sum(), atol=1e-4)
        np.testing.assert_allclose(layers.albedo[low], [red] * low.sum(), atol=1e-6)
    a, b, c = np.moveaxis(found.vertices[found.faces], 1, 0)
    middle = np.array([[0, 0, -1 / 3], [0, 0, 1 / 3]])
    nearest = np.abs((a + b + c)[:, None, 2] / 3 - middle[:, 2]).argmin(axis=1)
    outward = (np.cross(b - a, c - a) * ((a + b + c) / 3 - middle[nearest])).sum(axis=1)
    assert (outward > 0).all(), "a mirrored part is turned inside out again"
    # No normals were written: the faces are flat.
    np.testing.assert_allclose(np.abs(found.vertex_normals).max(axis=1), 1, atol=1e-6)


def test_a_texture_repeats_and_is_tinted_by_the_colour():
    """A texel of 1/2 light on a colour of 1/2 light is 1/4 light; u = 1.25 is u = 0.25."""
    half = float(srgb_from_linear(np.array(0.5)))
    texture = np.zeros((1, 2, 3), np.uint8)
    texture[0, 0] = round(half * 255)
    mesh = PaintedMesh(
        np.eye(3),
        np.array([[0, 1, 2]]),
        np.full((3, 3), half),
        None,
        np.full((3, 2), (1.25, -3.5), np.float32),
        (texture,),
        np.zeros(3, np.int64),
    )
    color = mesh._paint(mesh.faces, np.full((1, 3, 1), 1 / 3))
    assert color == pytest.approx(float(srgb_from_linear(np.array(0.25))), abs=2e-3)


def test_faces_have_colours_in_ply_and_nothing_is_grey(tmp_path):
    box = trimesh.creation.box()
    box.visual = ColorVisuals(box, face_colors=[[10 * k, 0, 0, 255] for k in range(12)])
    (tmp_path / "faces.ply").write_bytes(box.export(file_type="ply"))
    found, _ = read_mesh(tmp_path / "faces.ply")
    expected = np.arange(12)[:, None] * 10 / 255
    np.testing.assert_allclose(found.vertex_colors[found.faces][..., 0], expected.repeat(3, 1))
    (tmp_path / "bare.ply").write_bytes(trimesh.creation.box().export(file_type="ply"))
    bare, _ = read_mesh(tmp_path / "bare.ply")
    np.testing.assert_allclose(bare.vertex_colors, 0.7)


def test_materials_of_an_obj_colour_its_parts(tmp_path):
    (tmp_path / "two.mtl").write_text("newmtl red\nKd 1 0 0\nnewmtl blue\nKd 0 0 1\n")
    (tmp_path / "two.obj").write_text(
        "mtllib two.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n"
        "usemtl red\nf 1 2 3\nusemtl blue\nf 1 2 4\n"
    )
    found, _ = read_mesh(tmp_path / "two.obj")
    colors = {tuple(color) for color in found.vertex_colors[found.faces[:, 0]].tolist()}
    assert colors == {(1, 0, 0), (0, 0, 1)}


def test_what_no_face_uses_has_no_part_in_the_size(tmp_path):
    far = Mesh([[0, 0, 0], [2, 0, 0], [0, 1, 0], [99, 99, 99]], [[0, 1, 2]], np.ones((4, 3)))
    far.save(tmp_path / "far.ply")
    found, placement = read_mesh(tmp_path / "far.ply")
    assert placement == (0.5, (-0.5, -0.25, 0.0))
    assert np.ptp(found.vertices[found.faces[0]], axis=0).tolist() == [1, 0.5, 0]


def ply(vertices, faces):
    head = f"ply\nformat ascii 1.0\nelement vertex {len(vertices)}\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz")
    head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    rows = [" ".join(map(str, row)) for row in vertices]
    rows += [" ".join(map(str, (len(row), *row))) for row in faces]
    return (head + "\n".join(rows) + "\n").encode()


CORNERS = [(0, 0, 0), (1, 0, 0), (0, 1, 0)]
WHOLE = io.BytesIO(trimesh.creation.box().export(file_type="glb")).getvalue()
BROKEN = {
    "empty.glb": (b"", "cannot be read"),
    "empty.obj": (b"", "no triangles"),
    "noise.ply": (b"no mesh at all", "cannot be read"),
    "cut.glb": (WHOLE[: len(WHOLE) // 2], "cannot be read"),
    "points.ply": (ply(CORNERS, []), "no triangles"),
    "line.ply": (ply(CORNERS, [(0, 1, 1)]), "area"),
    "dot.ply": (ply([(1, 1, 1)] * 3, [(0, 1, 2)]), "area"),
    "nan.ply": (ply([*CORNERS[:2], ("nan", 0, 0)], [(0, 1, 2)]), "not finite"),
    "high.ply": (ply(CORNERS, [(0, 1, 9)]), "vertices 0..9|cannot be read"),
    "mesh.stl": (b"solid", "unknown extension '.stl'; known: .glb"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_a_line(tmp_path, name):
    content, reason = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason) as refused:
        read_mesh(tmp_path / name)
    assert "\n" not in str(refused.value)
