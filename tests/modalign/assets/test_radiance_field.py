"""Radiance fields as an asset. What light does in them: `rendering/test_marching.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modalign import RadianceField
from modalign.specs import Asset


def field(resolution=8, rank=3, dim=4):
    """The upper half of a cube is red, the lower blue."""
    side = (np.arange(2, 6) + 0.5) / resolution
    position = torch.tensor(np.stack(np.meshgrid(side, side, side), axis=-1).reshape(-1, 3))
    position = position.float()
    count = len(position)
    density, color = torch.zeros(count, rank), torch.zeros(count, rank, 1, 3)
    density[:, 0] = 60.0
    above = position[:, 2:] > 0.5
    color[:, 0, 0] = torch.where(
        above, torch.tensor([30.0, -30, -30]), torch.tensor([-30.0, -30, 30])
    )
    return RadianceField(position, torch.ones(count, rank, 3, dim), density, color, resolution)


def test_a_radiance_field_is_an_asset_whose_files_keep_every_bit(tmp_path):
    own = field()
    assert isinstance(own, Asset)
    for name in ("x", "y"):
        own.save(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()
    back = RadianceField.load(tmp_path / "x.safetensors")
    assert back.resolution == 8
    for name in ("position", "trivec", "density", "features_dc"):
        assert torch.equal(getattr(back, name), getattr(own, name))


def test_a_picture_shows_red_above_blue_over_the_background():
    (picture,) = field().render(views=1, size=24, background=(0.0, 1.0, 0.0))
    assert picture.shape == (24, 24, 3)
    assert picture[0, 0].tolist() == [0, 255, 0]
    covered = picture[..., 1] < 20
    rows = np.nonzero(covered.any(axis=1))[0]
    top, bottom = (picture[row][covered[row]].mean(axis=0) for row in (rows[1], rows[-2]))
    assert top[0] > 240
    assert bottom[2] > 240


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 4}, "two positions are of one voxel at resolution 4"),
        ({"position": field().position + 1}, "position must be inside 0..1, got 1.31..1.69"),
        ({"trivec": torch.ones(64, 3, 2, 4)}, r"trivec must be \(N, R, 3, D\)"),
        ({"density": torch.ones(64, 2)}, r"density must be \(64, 3\), one row per voxel"),
        ({"density": torch.full((64, 3), torch.inf)}, "density holds numbers that are not finite"),
    ],
)
def test_tensors_that_make_no_field_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        RadianceField(**(vars(field()) | change))


def test_files_that_hold_none_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    path.write_bytes(b"a mug")
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        RadianceField.load(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="holds no radiance field of modalign"):
        RadianceField.load(path)
    empty = RadianceField(*(part[:0] for part in list(vars(field()).values())[:4]), 8)
    with pytest.raises(ValueError, match="no voxels"):
        empty.save(tmp_path / "y.safetensors")
    field().save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        RadianceField.load(path)
    assert (empty.render(views=1, size=4) == 255).all()
