"""The toybox as a data set: determinism, splits, cameras, what its pictures show."""

import numpy as np
import pytest
from modalign_plugins.datasets.toybox import (
    COLORS,
    FAMILIES,
    SPLITS,
    Toybox,
    held_out,
    main_colors,
    nearest_color,
)
from modalign_plugins.datasets.toybox.pairs import ToyboxPairs

BOX = Toybox(seed=0)


def test_equal_seeds_give_equal_samples_and_different_seeds_do_not():
    for domain in ("asset", "scene"):
        first, again, other = (
            getattr(box, domain)(5, "val", size=32, view=3)
            for box in (Toybox(seed=1), Toybox(seed=1), Toybox(seed=2))
        )
        np.testing.assert_array_equal(first.image, again.image)
        np.testing.assert_array_equal(first.part_ids, again.part_ids)
        assert first.captions == again.captions
        assert first.descriptions == again.descriptions
        assert not np.array_equal(first.image, other.image)
    assert Toybox(seed=1).captions(5) == Toybox(seed=1).captions(5)
    assert Toybox(seed=1).questions(5) == Toybox(seed=1).questions(5)
    edits = [[e.instruction for e in Toybox(seed=1).edits(5)] for _ in range(2)]
    assert edits[0] == edits[1]


def test_a_view_changes_the_picture_and_not_the_object():
    first, second = BOX.asset(3, view=0), BOX.asset(3, view=1)
    assert not np.array_equal(first.image, second.image)
    assert first.object.family == second.object.family
    assert first.object.variation == second.object.variation


def test_every_colour_is_held_out_about_equally_often_and_every_family_keeps_ten():
    pairs = [(family, color) for family in FAMILIES for color in held_out(family)]
    counts = [sum(color == c for _, color in pairs) for c in COLORS]
    assert len(set(pairs)) == 2 * len(FAMILIES)
    assert max(counts) - min(counts) <= 1
    for family in FAMILIES:
        assert len(main_colors(family, "train")) == 10
        assert not set(main_colors(family, "train")) & set(held_out(family))


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_pairs_occur_in_the_compositional_split_only(split):
    for index in range(600):
        toy = BOX.object(index, split)
        assert (toy.color in held_out(toy.family)) == (split == "compositional")


@pytest.mark.parametrize("split", SPLITS)
def test_edits_and_companions_keep_to_the_colours_of_their_split(split):
    seen = 0
    for index in range(60):
        toys = [edit.object for edit in BOX.edits(index, split)]
        scenery = BOX.scene(index, split, size=8).scenery
        if scenery.companion is not None:
            toys.append(scenery.companion.toy)
            seen += 1
        for toy in toys:
            assert toy.color in main_colors(toy.family, split)
    assert seen


def test_splits_are_different_streams():
    streams = [[BOX.object(k, split).variation for k in range(8)] for split in SPLITS]
    for k, stream in enumerate(streams):
        assert all(stream != other for other in streams[:k])


def test_an_unknown_split_and_a_negative_index_are_refused():
    with pytest.raises(ValueError, match="'tset'.*train"):
        BOX.object(0, "tset")
    with pytest.raises(ValueError, match="-1"):
        BOX.asset(-1)
    with pytest.raises(ValueError, match="'medium'"):
        BOX.captions(0, length="medium")


def test_assets_are_cropped_as_trellis_crops():
    """Centre of the alpha's box in the centre, its longer side 1 / 1.2 of the picture."""
    size = 240
    for index in range(24):
        alpha = BOX.asset(index, size=size).alpha
        rows, columns = np.nonzero(alpha > 0.8)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert max(height, width) == pytest.approx(size / 1.2, abs=2)
        assert (rows.min() + rows.max() + 1) / 2 == pytest.approx(size / 2, abs=1.5)
        assert (columns.min() + columns.max() + 1) / 2 == pytest.approx(size / 2, abs=1.5)


def test_assets_are_black_where_alpha_is_zero():
    picture = BOX.asset(2)
    assert picture.image[picture.alpha == 0].max() == 0
    assert np.isinf(picture.depth[picture.alpha == 0]).all()
    assert (picture.part_ids[picture.alpha == 0] == -1).all()
    assert (picture.part_ids[picture.alpha == 1] >= 0).all()


def test_pixels_lie_on_the_part_that_they_name():
    """Depth, camera and part ids agree with the distance function at every pixel."""
    for domain in (BOX.asset, BOX.scene):
        for index in range(12):
            picture = domain(index, size=48)
            rays = picture.camera.rays(48)
            shown = picture.part_ids >= 0
            points = picture.camera.eye + picture.depth[shown][:, None] * rays[shown]
            distances = picture.object.part_distances(points)
            own = distances[picture.part_ids[shown], np.arange(len(points))]
            assert np.abs(own).max() < 2e-3
            assert (distances.min(axis=0) > -2e-3).all()


def test_main_and_second_part_are_seen_from_the_asset_camera():
    """On average the main part is seen most; the second covers 3 % in nearly every view."""
    shares = {family: [] for family in FAMILIES}
    for index in range(400):
        picture = BOX.asset(index, size=40)
        ids = picture.part_ids[picture.part_ids >= 0]
        shares[picture.object.family].append([(ids == 0).mean(), (ids == 1).mean()])
    for family, values in shares.items():
        main, second = np.array(values).T
        assert main.mean() > second.mean(), family
        assert main.min() > 0.03, family
        assert np.mean(second > 0.03) > 0.85, family


def test_shading_keeps_the_colours_apart():
    """The typical pixel of a part in an asset is nearest to the part's own colour."""
    right = []
    for index in range(120):
        picture = BOX.asset(index, size=48)
        for k, part in enumerate(picture.object.parts[:2]):
            pixels = picture.image[picture.part_ids == k] / 255
            if len(pixels) > 20:
                name = nearest_color(np.median(pixels, axis=0)[None], darkest=0.68)[0]
                right.append(name == part.color)
    assert np.mean(right) > 0.99


def test_an_edited_object_keeps_the_camera_and_the_surroundings():
    edit = BOX.edits(4)[0]
    before, after = BOX.scene(4), BOX.scene(4, subject=edit.object)
    outside = (before.part_ids < 0) & (after.part_ids < 0)
    assert outside.any()
    np.testing.assert_array_equal(before.image[outside], after.image[outside])
    main = before.part_ids == 0
    assert (before.image[main] != after.image[main]).any()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"domain": "moon"}, "'scene' or 'asset'"),
        ({"split": "exam"}, "use one of train, val"),
        ({"views": 0}, "views 0 must be at least 1"),
        ({"size": -3}, "size -3"),
    ],
)
def test_pairs_that_cannot_be_drawn_are_refused_before_the_first(options, expected):
    with pytest.raises(ValueError, match=expected):
        ToyboxPairs(**options)
