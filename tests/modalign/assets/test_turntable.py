"""Films of one turn, and what the pictures of all assets in space share."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from PIL import Image, ImageSequence

from modalign import Mesh, OutputError
from modalign.assets.turntable import WHOLE_RADIUS, write_turntable
from modalign.rendering.cameras import orbit
from modalign.specs import Progress
from tests.modalign.assets.test_gaussians import splats
from tests.modalign.assets.test_radiance_field import field

TETRAHEDRON = Mesh(
    0.4 * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]),
    np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]]),
    np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]),
)
ASSETS = {"mesh": TETRAHEDRON, "gaussians": splats(), "radiance field": field()}


def frames(path):
    with Image.open(path) as film:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]


@pytest.mark.parametrize("asset", ASSETS.values(), ids=ASSETS)
def test_every_asset_in_space_is_seen_alike(asset, tmp_path):
    pictures = asset.render(3, 16, background=0.25)
    assert pictures.shape == (3, 16, 16, 3)
    assert pictures.dtype == np.uint8
    assert (pictures[:, 0, 0] == 64).all()
    assert (asset.render(cameras=orbit(2), size=8) < 250).any(axis=(1, 2, 3)).all()
    assert asset.render(cameras=[], size=8).shape == (0, 8, 8, 3)
    asset.turntable(tmp_path / "x.gif", frames=3, size=16)
    assert len(frames(tmp_path / "x.gif")) == 3


def test_a_preview_is_four_views_side_by_side(tmp_path):
    ASSETS["gaussians"].preview(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as strip:
        assert np.array_equal(np.asarray(strip)[:, 256:512], ASSETS["gaussians"].render()[1])


@pytest.mark.parametrize("asset", ASSETS.values(), ids=ASSETS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be at least 1 pixel, got 0"),
        ({"views": 0}, "views must be at least 1, got 0"),
        ({"background": 2}, "background must be a grey or RGB in 0..1, got 2"),
        ({"background": (0, 1)}, "background must be a grey or RGB"),
    ],
)
def test_pictures_that_cannot_be_are_refused(asset, arguments, message):
    with pytest.raises(ValueError, match=message):
        asset.render(**arguments)


@pytest.mark.parametrize(("extension", "tolerance"), [(".png", 0), (".gif", 2), (".webp", 3)])
def test_a_film_shows_one_turn_at_25_frames_per_second_for_ever(tmp_path, extension, tolerance):
    path = tmp_path / f"x{extension}"
    seen: list[Progress] = []
    TETRAHEDRON.turntable(path, frames=11, size=32, background=0.5, progress=seen.append)
    expected = TETRAHEDRON.render(cameras=orbit(11, radius=WHOLE_RADIUS), size=32, background=0.5)
    found = np.stack(frames(path)).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() <= tolerance
    assert [(step.step, step.total) for step in seen] == [(8, 11), (11, 11)]
    with Image.open(path) as film:
        assert film.info["loop"] == 0
        film.seek(1)
        film.load()
        assert film.info["duration"] == 40
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # imageio-ffmpeg's reader leaves pipes open
@pytest.mark.skipif(
    importlib.util.find_spec("imageio_ffmpeg") is None, reason="needs modalign[video]"
)
def test_mp4_shows_the_same(tmp_path):
    import imageio_ffmpeg

    path = tmp_path / "x.mp4"
    TETRAHEDRON.turntable(path, frames=5, size=64, background=0.5)
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    found = np.stack([np.frombuffer(frame, np.uint8).reshape(64, 64, 3) for frame in reader])
    expected = TETRAHEDRON.render(cameras=orbit(5, radius=WHOLE_RADIUS), size=64, background=0.5)
    assert (about["fps"], found.shape) == (25, expected.shape)
    assert np.abs(found.astype(int) - expected).mean() < 6  # half the resolution in colour
    with pytest.raises(ValueError, match="MP4 needs an even size, got 63"):
        TETRAHEDRON.turntable(tmp_path / "y.mp4", frames=5, size=63)


def test_films_that_cannot_be_written_are_refused_before_the_first_frame(tmp_path, monkeypatch):
    class Unseen:
        def render(self, *_, **__):
            raise AssertionError("rendered")

    known = "unknown extension '.avi' of a turntable; known: .gif, .webp, .png, .mp4"
    with pytest.raises(ValueError, match=known):
        write_turntable(Unseen(), tmp_path / "x.avi")
    with pytest.raises(ValueError, match="at least 2 frames, got 1"):
        write_turntable(Unseen(), tmp_path / "x.gif", frames=1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"needs imageio-ffmpeg; pip install modalign\[video\]"):
        write_turntable(Unseen(), tmp_path / "x.mp4")
    assert not list(tmp_path.iterdir())


def test_a_film_that_the_disk_refuses_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "x.gif"
    path.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        TETRAHEDRON.turntable(path, frames=2, size=8)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
