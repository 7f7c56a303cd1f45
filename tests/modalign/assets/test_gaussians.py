"""Gaussians as an asset: files, pictures, and what is refused. Columns: golden `gaussian_ply`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modalign import Gaussians
from modalign.assets.splat_files import COLUMNS, SPLAT
from modalign.rendering.cameras import look
from modalign.specs import Asset


def splats(count=50, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw)

    return Gaussians(
        xyz=0.2 * normal(count, 3),
        scaling=0.03 * (0.5 * normal(count, 3)).exp(),
        rotation=torch.nn.functional.normalize(normal(count, 4), dim=1),
        opacity=normal(count, 1).sigmoid(),
        features_dc=normal(count, 1, 3),
    )


def columns(content):
    """A second reader of our PLY."""
    head, _, body = content.partition(b"end_header\n")
    names = [line.split()[2].decode() for line in head.split(b"\n") if line[:8] == b"property"]
    assert b"format binary_little_endian 1.0" in head
    table = np.frombuffer(body, "<f4").reshape(-1, len(names))
    return dict(zip(names, table.T, strict=True))


def test_gaussians_are_an_asset():
    assert isinstance(splats(), Asset)
    assert len(splats(7)) == 7


def test_a_ply_comes_back_up_to_the_rounding_of_float32(tmp_path):
    own = splats(2000)
    own.save(tmp_path / "x.ply")
    back = Gaussians.load(tmp_path / "x.ply")
    assert torch.equal(back.xyz, own.xyz)
    assert torch.equal(back.features_dc, own.features_dc)
    torch.testing.assert_close(back.scaling, own.scaling, rtol=1e-6, atol=0)
    torch.testing.assert_close(back.opacity, own.opacity, rtol=0, atol=2e-7)
    torch.testing.assert_close(back.rotation, own.rotation, rtol=0, atol=2e-7)


def test_opacities_of_0_and_1_come_back(tmp_path):
    own = splats(2)
    own.opacity.copy_(torch.tensor([[0.0], [1.0]]))
    own.save(tmp_path / "x.ply")
    assert all(column.isfinite().all() for column in own.ply_columns().values())
    torch.testing.assert_close(
        Gaussians.load(tmp_path / "x.ply").opacity, own.opacity, atol=1e-7, rtol=0
    )


def test_a_ply_has_the_usual_columns_turned_for_viewers(tmp_path):
    """Viewers of splats have y pointing down, so what is up in the world becomes -y."""
    own = splats()
    own.save(tmp_path / "x.ply")
    found = columns((tmp_path / "x.ply").read_bytes())
    assert tuple(found) == COLUMNS
    x, y, z = own.xyz.numpy().T
    np.testing.assert_array_equal([found["x"], found["y"], found["z"]], [x, -z, y])
    assert not found["nx"].any()
    # The turned quaternions turn the axes as the positions are turned.
    turned = Gaussians(
        xyz=own.xyz,
        scaling=own.scaling,
        rotation=torch.from_numpy(np.stack([found[f"rot_{k}"] for k in range(4)], axis=1)),
        opacity=own.opacity,
        features_dc=own.features_dc,
    )
    turn = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    torch.testing.assert_close(turned.axes, turn @ own.axes, atol=1e-6, rtol=0)


def test_a_splat_file_has_32_bytes_each(tmp_path):
    own = splats()
    own.save(tmp_path / "x.splat")
    content = (tmp_path / "x.splat").read_bytes()
    assert len(content) == 32 * len(own)
    table = np.frombuffer(content, SPLAT)
    x, y, z = own.xyz.numpy().T
    np.testing.assert_array_equal(table["xyz"].T, [x, -z, y])
    np.testing.assert_array_equal(table["scaling"], own.scaling)
    color = (0.5 + 0.28209479 * own.features_dc[:, 0].numpy()).clip(0, 1)
    assert np.abs(table["rgba"][:, :3] / 255 - color).max() <= 0.5 / 255 + 1e-6
    assert np.abs(table["rgba"][:, 3:] / 255 - own.opacity.numpy()).max() <= 0.5 / 255 + 1e-6
    rotation = np.stack([own.ply_columns()[f"rot_{k}"] for k in range(4)], axis=1)
    stored = (table["rotation"].astype(float) - 128) / 128
    assert np.abs(stored - rotation).max() <= 1 / 128


@pytest.mark.parametrize("extension", [".ply", ".splat"])
def test_equal_splats_give_equal_files(tmp_path, extension):
    for name in ("one", "two"):
        splats().save(tmp_path / f"{name}{extension}")
    one, two = ((tmp_path / f"{name}{extension}").read_bytes() for name in ("one", "two"))
    assert one == two


def test_columns_may_be_in_another_order_and_have_company(tmp_path):
    """Trainers write higher spherical harmonics between ours, some write doubles."""
    own = splats(5)
    own.save(tmp_path / "x.ply")
    found = columns((tmp_path / "x.ply").read_bytes())
    names = [*reversed(COLUMNS), "f_rest_0"]
    table = np.zeros(5, dtype=[(name, "<f8") for name in names])
    for name in COLUMNS:
        table[name] = found[name]
    header = "".join(f"property double {name}\n" for name in names)
    (tmp_path / "y.ply").write_bytes(
        b"ply\nformat binary_little_endian 1.0\ncomment by hand\nelement vertex 5\n"
        + header.encode()
        + b"end_header\n"
        + table.tobytes()
    )
    one, two = (Gaussians.load(tmp_path / name) for name in ("x.ply", "y.ply"))
    assert all(torch.equal(vars(one)[name], vars(two)[name]) for name in vars(one))


def broken(content, how):
    return {
        "no ply": b"a mug",
        "ascii": content.replace(b"binary_little_endian", b"ascii"),
        "a mesh": content.replace(b"property float opacity", b"property float gravity"),
        "cut": content[:-10],
        "faces first": content.replace(b"element vertex", b"element face"),
        "a list": content.replace(b"property float nx", b"property list uchar int nx"),
    }[how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no ply", "x.ply is no PLY file"),
        ("ascii", "not a binary little-endian PLY"),
        ("a mesh", "holds no Gaussian splats: it lacks the columns opacity"),
        ("cut", "cut short: 50 splats need 3400 bytes, it has 3390"),
        ("faces first", "its first element is no vertex"),
        ("a list", "unknown column: 'property list uchar int nx'"),
    ],
)
def test_files_that_are_no_splats_are_refused_in_one_line(tmp_path, how, message):
    path = tmp_path / "x.ply"
    splats().save(path)
    path.write_bytes(broken(path.read_bytes(), how))
    with pytest.raises(ValueError, match=message) as caught:
        Gaussians.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scaling": torch.zeros(50, 3)}, "scaling must be above 0"),
        ({"opacity": torch.full((50, 1), 1.5)}, "opacity must be in 0..1"),
        (
            {"opacity": torch.zeros(50)},
            r"opacity must be \(50, 1\), one row per splat, got \(50,\)",
        ),
        ({"rotation": torch.ones(50, 4)}, "unit quaternions"),
        ({"xyz": torch.full((50, 3), math.nan)}, "xyz holds numbers that are not finite"),
        ({"features_dc": torch.zeros(50, 1, 3).int()}, "floating-point, all of one type"),
        ({"features_dc": torch.zeros(50, 1, 3).double()}, "floating-point, all of one type"),
    ],
)
def test_tensors_that_make_no_splats_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Gaussians(**(vars(splats()) | change))


def test_no_splats_cannot_be_saved_but_looked_at(tmp_path):
    with pytest.raises(ValueError, match="there are no splats"):
        splats(0).save(tmp_path / "x.ply")
    assert (splats(0).render(views=2, size=8) == 255).all()
    with pytest.raises(ValueError, match="unknown extension '.glb'; known: .ply, .splat"):
        splats().save(tmp_path / "x.glb")
    assert not list(tmp_path.iterdir())


def test_pictures_lie_over_their_background():
    """Red splats above blue ones, from the side: the view over grey, and the picture's halves."""
    own = splats(400)
    own.features_dc[:, 0] = torch.where(
        own.xyz[:, 2:] > 0, torch.tensor([1.5, -1.8, -1.8]), torch.tensor([-1.8, -1.8, 1.5])
    )
    camera = look(0.0, 0.0, 2.0, math.radians(40))
    (picture,) = own.render(size=32, cameras=[camera], background=(0.0, 1.0, 0.0))
    color, alpha = own.view(camera, 32)
    expected = color + (1 - alpha)[..., None] * torch.tensor([0.0, 1, 0])
    assert np.abs(picture - 255 * expected.clamp(0, 1).numpy()).max() <= 0.5 + 1e-3
    assert alpha.max() > 0.9
    top, bottom = picture[13, 14:18].mean(axis=0), picture[19, 14:18].mean(axis=0)
    assert top[0] > top[2] + 50
    assert bottom[2] > bottom[0] + 50


def test_colours_brighter_than_white_are_clipped_in_pictures_alone():
    own = splats(300)
    own.features_dc.fill_(10.0)
    assert own.view(look(0.0, 0.0, 2.0, 0.7), 16)[0].max() > 1.5
    assert own.render(views=1, size=16, background=0.0).max() == 255


def test_moving_to_another_type_keeps_the_rest():
    wide = splats().to(torch.float64)
    assert wide.xyz.dtype == wide.opacity.dtype == torch.float64
    assert np.array_equal(wide.render(2, 16), splats().render(2, 16)) or (
        np.abs(wide.render(2, 16).astype(int) - splats().render(2, 16)).max() <= 1
    )
