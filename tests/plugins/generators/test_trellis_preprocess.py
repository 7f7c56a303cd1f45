"""Any picture as the image encoder wants it: cut out, cropped, on black; or refused in a line."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from modalign_plugins.generators.trellis import preprocess
from PIL import Image

from modalign import GenerationError, ModalignError, PromptError, installed, pair


def cut_out(width=60, height=40, left=10, top=5, object_width=20, object_height=10):
    """A grey gradient with an opaque rectangle."""
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[..., :3] = np.linspace(60, 220, width).astype(np.uint8)[None, :, None]
    pixels[top : top + object_height, left : left + object_width, 3] = 255
    return Image.fromarray(pixels)


def test_the_crop_is_centred_on_the_object_with_a_margin_of_a_fifth():
    """Longer side 20 pixels: a crop of 1.2 x 19, 22. At that size nothing is resized."""
    square = np.asarray(preprocess.object_picture(cut_out(), 22))
    expected = np.zeros((22, 22, 3), np.uint8)
    expected[7:17, 2:22] = np.asarray(cut_out())[5:15, 10:30, :3]  # Pillow rounds 8.5 to 8
    assert np.array_equal(square, expected)


def test_trellis2_crops_to_the_object_itself():
    """Longer side 20 pixels: a crop of 19, and twice 19 // 2 is 18, one pixel less on each side."""
    crop = installed().get("generators", "trellis2-512").crop
    assert crop.keywords == {"size": 512, "margin": 1.0, "longest": 1024}
    square = np.asarray(crop(cut_out(), size=18))
    expected = np.zeros((18, 18, 3), np.uint8)
    expected[5:15] = np.asarray(cut_out())[5:15, 10:28, :3]  # Pillow rounds 10.5 to 10, 0.5 to 0
    assert np.array_equal(square, expected)
    assert crop(cut_out()).size == (512, 512)


def test_a_large_picture_is_shrunk_before_the_crop_where_that_is_asked_for():
    large = cut_out().resize((3000, 2000), Image.Resampling.NEAREST)
    small = large.resize((1024, 682), Image.Resampling.LANCZOS)
    made = preprocess.object_picture(large, 64, margin=1.0, longest=1024)
    assert made.tobytes() == preprocess.object_picture(small, 64, margin=1.0).tobytes()
    assert made.tobytes() != preprocess.object_picture(large, 64, margin=1.0).tobytes()


@pytest.mark.parametrize("mode", ["LA", "RGBa"])
def test_transparency_counts_in_every_mode_that_has_it(mode):
    expected = preprocess.object_picture(cut_out(), 64)
    made = preprocess.object_picture(cut_out().convert(mode), 64)
    assert np.abs(np.asarray(made).astype(int) - np.asarray(expected)).max() <= 1


def test_a_palette_with_a_transparent_colour_is_a_cut_out():
    pixels = np.zeros((40, 60), np.uint8)
    pixels[5:15, 10:30] = 1
    picture = Image.fromarray(pixels, mode=None).convert("P")
    picture.putpalette([0, 0, 0, 200, 100, 50])
    picture.putdata(pixels.ravel().tolist())
    picture.info["transparency"] = 0
    square = np.asarray(preprocess.object_picture(picture, 64))
    assert square[32, 32].tolist() == [200, 100, 50]
    assert square[0].max() == 0


@pytest.mark.parametrize(
    ("mode", "value"), [("I;16", 200 * 257), ("I", 200 * 257), ("L", 200), ("RGB", (200,) * 3)]
)
def test_grey_of_8_and_16_bits_is_the_same_grey(mode, value):
    """White is 255 or 65535, and 65535 = 255 x 257."""
    picture = preprocess.with_alpha(Image.new(mode, (9, 9), value))
    assert picture.mode == "RGBA"
    assert np.asarray(picture)[4, 4].tolist() == [200, 200, 200, 255]


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_other_mode_is_read(mode):
    assert preprocess.with_alpha(Image.new("RGB", (9, 9), "red").convert("RGB")).mode == "RGBA"
    assert preprocess.with_alpha(Image.new(mode, (9, 9))).mode == "RGBA"


def test_an_animated_picture_is_refused(tmp_path):
    frames = [cut_out().convert("RGB").point(lambda x, k=k: x // (k + 1)) for k in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with (
        Image.open(tmp_path / "moving.gif") as picture,
        pytest.raises(PromptError, match=r"animated \(3 frames\); give one frame"),
    ):
        preprocess.object_picture(picture, 64)


def test_a_cameras_jpeg_is_its_first_picture(tmp_path):
    """Phones write JPEGs with a gain map or a second eye behind the picture itself."""
    first, second = (Image.new("RGB", (64, 48), color) for color in ("red", "blue"))
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second])
    with Image.open(tmp_path / "phone.jpg") as picture:
        assert picture.n_frames == 2
        red, _, blue, alpha = np.asarray(preprocess.with_alpha(picture))[24, 32].tolist()
    assert red > 250
    assert blue < 5
    assert alpha == 255


def test_numbers_without_a_white_are_refused():
    with pytest.raises(PromptError, match="floating-point numbers, whose white is unknown"):
        preprocess.object_picture(Image.new("F", (9, 9)), 64)


def test_a_picture_with_nothing_opaque_is_refused():
    faint = cut_out()
    faint.putalpha(204)  # 0.8 of 255 is not above 0.8
    with pytest.raises(PromptError, match="no pixel of the picture is opaque"):
        preprocess.object_picture(faint, 64)


def test_an_object_of_one_pixel_is_refused():
    with pytest.raises(PromptError, match="the object in the picture is 1 x 1 pixels"):
        preprocess.object_picture(cut_out(object_width=1, object_height=1), 64)


def test_an_opaque_picture_without_rembg_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(ModalignError, match=r"pip install modalign\[background\], or give a PNG"):
        preprocess.object_picture(Image.new("RGB", (30, 30), "red"), 64)


def with_rembg(monkeypatch, remove):
    """A stand-in with rembg's two functions: the real one downloads 176 MB."""
    asked = []

    def watched(picture, session):
        asked.append((picture.mode, picture.size, session))
        return remove(picture)

    module = SimpleNamespace(remove=watched, new_session=lambda name: f"session of {name}")
    monkeypatch.setitem(sys.modules, "rembg", module)
    return asked


def test_a_background_is_removed_at_1024_pixels_at_most(monkeypatch):
    def left_half(picture):
        alpha = Image.new("L", picture.size, 0)
        alpha.paste(255, (0, 0, picture.width // 2, picture.height))
        cut = picture.copy()
        cut.putalpha(alpha)
        return cut

    asked = with_rembg(monkeypatch, left_half)
    square = preprocess.object_picture(Image.new("RGB", (2048, 1000), (10, 200, 30)), 64)
    assert asked == [("RGB", (1024, 500), "session of u2net")]
    assert square.getpixel((32, 32)) == (10, 200, 30)


def test_transparency_spares_the_removal(monkeypatch):
    asked = with_rembg(monkeypatch, None)
    preprocess.object_picture(cut_out(), 64)
    assert asked == []


def test_a_removal_that_fails_is_one_line(monkeypatch):
    def fail(picture):
        raise ConnectionError("no network")

    with_rembg(monkeypatch, fail)
    with pytest.raises(ModalignError, match=r"\(ConnectionError: no network\); give a PNG"):
        preprocess.object_picture(Image.new("RGB", (30, 30), "red"), 64)


@pytest.mark.parametrize(("name", "side"), [("trellis-image-large", 518), ("trellis-mini", 112)])
def test_an_image_generator_crops_to_the_side_of_its_encoder(name, side):
    spec = installed().get("generators", name)
    assert spec.accepts.space.endswith(f"@{side}")
    assert spec.crop(cut_out()).size == (side, side)


def test_a_text_generator_crops_nothing():
    assert installed().get("generators", "trellis-text-large").crop is None


@pytest.mark.slow
def test_a_picture_ends_in_the_generate_call_of_any_stream():
    """The shipped encoder and generator: the crop, the tokens and the mesh, by hand."""
    picture = cut_out(left=5, object_width=40, object_height=35)
    both = pair("dinov2-mini-reg", "trellis-mini")
    square = preprocess.object_picture(picture, 112)
    stream = both.encoder.encode(both.encoder.prepare([square]))
    (expected,) = both.generator.generate(stream, seed=2, steps=2)
    (mesh,) = both.generate(picture, seed=2, steps=2)
    assert np.array_equal(mesh.vertices, expected.vertices)
    with pytest.raises(GenerationError, match=r"it can make mesh$"):
        both.generate(picture, format="gaussians")
