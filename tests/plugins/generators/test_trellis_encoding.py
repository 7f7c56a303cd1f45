"""Encoders: distances against solids with a formula, projection against linear functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modalign_plugins.datasets.toybox import Toybox
from modalign_plugins.generators.trellis import (
    MINI_FOLDER,
    architectures,
    loader,
    modalign_generators,
)
from modalign_plugins.generators.trellis.distances import REACH, closest, distance_features
from modalign_plugins.generators.trellis.encoding import (
    RELEASED_ENCODERS,
    Encoders,
    Views,
    encode_mesh,
    encode_structure,
    load_encoders,
    occupancy,
    project_features,
)
from modalign_plugins.generators.trellis.sparse import Coordinates
from modalign_plugins.generators.trellis.structure_vae import occupied
from modalign_plugins.generators.trellis.voxels import voxelize
from modalign_plugins.weights import sources
from PIL import Image

from modalign import Mesh, WeightsError, installed
from modalign.rendering.cameras import camera_extrinsics, camera_intrinsics

from . import trellis_tiny
from .test_trellis_voxels import CUBE, CUBE_FACES, crumpled, mesh_of
from .trellis_worlds import shaken


@pytest.fixture(scope="module")
def mini():
    return {spec.name: spec for spec in modalign_generators()}["trellis-mini"].build()


@pytest.fixture(scope="module")
def world():
    pytest.importorskip("skimage", reason="meshes of the toy world are marching cubes")
    return Toybox()


def toy_mesh(toy):
    return Mesh(*toy.mesh(48))


def slab():
    """A box of half the height, red below and blue above its middle."""
    vertices = np.concatenate([CUBE, CUBE + [0, 0, 1]]) * [1, 1, 0.25]
    faces = np.concatenate([CUBE_FACES, CUBE_FACES + 8])
    colors = np.repeat([[1.0, 0, 0], [0, 0, 1.0]], 8, axis=0)
    return Mesh(vertices, faces, colors)


def test_the_nearest_point_is_at_least_as_near_as_any_and_lies_where_its_shares_say():
    rng = np.random.default_rng(0)
    corners = crumpled(30).vertices.astype(float).reshape(-1, 3, 3)
    points = rng.normal(size=(30, 20, 3)) * 2
    distance, shares = closest(points, corners)
    assert (shares > -1e-12).all()
    np.testing.assert_allclose(shares.sum(-1), 1)
    place = np.einsum("kmc,kcx->kmx", shares, corners)
    np.testing.assert_allclose(np.linalg.norm(points - place, axis=-1), distance, atol=1e-6)
    dense = np.einsum("sc,kcx->ksx", rng.dirichlet([0.5] * 3, 3000), corners)
    sampled = np.linalg.norm(points[:, :, None] - dense[:, None], axis=-1).min(axis=-1)
    assert (distance <= sampled + 1e-6).all()
    assert (sampled - distance).mean() < 0.05


def test_features_of_a_box_are_its_signed_distance_and_nearest_colour():
    """Outside of a box: |max(|p| - b, 0)|; inside: the largest of |p| - b (both by algebra)."""
    vertices = (CUBE - 0.5) * [1, 0.6, 0.4]
    mesh = Mesh(vertices, CUBE_FACES, np.tile([[0.0, 0.5, 1.0]], (8, 1)))
    voxels = voxelize(mesh, 8)
    found = distance_features(mesh, voxels)
    step = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    points = voxels.xyz[:, None] * 4 + step - 16  # cells of the 32^3 grid, from its centre
    over = np.abs(points) - np.array([16 - 32e-6, 9.6, 6.4])
    signed = np.linalg.norm(over.clip(0), axis=-1) + over.max(-1).clip(max=0)
    signed = np.maximum(signed, np.abs(points).max(-1) - 15.25)  # cut off before the grid's faces
    np.testing.assert_allclose(found[:, :64], signed.clip(-REACH, REACH) / REACH, atol=1e-5)
    near = np.abs(signed) < REACH - 1e-4
    color = found[:, 64:].reshape(-1, 64, 3)
    np.testing.assert_allclose(color[near], np.tile([[-1.0, 0, 1.0]], (near.sum(), 1)), atol=1e-5)
    assert not color[np.abs(signed) > REACH + 1e-4].any()


def test_features_do_not_depend_on_how_many_pairs_are_measured_at_once(monkeypatch):
    mesh = slab()
    voxels = voxelize(mesh, 8)
    whole = distance_features(mesh, voxels)
    monkeypatch.setattr("modalign_plugins.generators.trellis.distances.PAIRS_AT_ONCE", 1)
    assert torch.equal(distance_features(mesh, voxels), whole)


def test_features_are_those_that_the_encoder_was_trained_on(world):
    """The world's own signed distance is the second way; marching cubes rounds its edges."""
    toy = world.object(1, "val")
    voxels = voxelize(toy_mesh(toy), 16)
    step = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    points = ((voxels.xyz[:, None] * 4 + step) / 64 - 0.5).reshape(-1, 3)
    signed = (toy.sdf(points) * 64).clip(-REACH, REACH).reshape(-1, 64)
    found = distance_features(toy_mesh(toy), voxels)[:, :64].numpy() * REACH
    inside = np.abs(points).max(-1).reshape(-1, 64) < 0.5 - 1 / 64
    assert np.abs(found - signed)[inside].mean() < 0.1  # cells
    assert (np.sign(found) == np.sign(signed))[inside & (np.abs(signed) > 0.5)].mean() > 0.999


def test_an_open_mesh_has_no_distances_but_still_voxels():
    mesh = mesh_of(CUBE, CUBE_FACES[4:])
    voxels = voxelize(mesh, 8)
    with pytest.raises(ValueError, match="8 open edges and no clear inside at"):
        distance_features(mesh, voxels)


def cameras(count=3):
    extrinsics = [camera_extrinsics(0.3 + 2 * k, 0.4, 3.0) for k in range(count)]
    intrinsics = np.repeat(camera_intrinsics(0.7)[None], count, axis=0)
    return torch.tensor(np.stack(extrinsics)), torch.tensor(intrinsics)


def test_features_linear_in_the_picture_are_read_where_each_voxel_is_seen():
    """Bilinear interpolation keeps linear functions, so the mean over views has a closed form."""
    extrinsics, intrinsics = cameras()
    u = (torch.arange(12) + 0.5) / 12
    v = (torch.arange(9) + 0.5) / 9
    features = torch.stack([u.expand(9, 12), v[:, None].expand(9, 12), torch.ones(9, 12)])
    scale = torch.tensor([1.0, 2.0, 5.0]).view(-1, 1, 1, 1)
    xyz = torch.cartesian_prod(*[torch.tensor([1, 4, 6])] * 3)
    at = Coordinates(torch.nn.functional.pad(xyz, (1, 0)), 1)
    found = project_features(at, 8, Views(features * scale, extrinsics, intrinsics))
    points = torch.nn.functional.pad((xyz.double() + 0.5) / 8 - 0.5, (0, 1), value=1)
    expected = torch.zeros(len(xyz), 3, dtype=torch.float64)
    for k in range(3):
        seen = intrinsics[k] @ extrinsics[k, :3] @ points.T
        place = (seen / seen[2]).T
        assert (place[:, :2] > 0.1).all()
        assert (place[:, :2] < 0.9).all()
        expected += place * scale[k].item() / 3
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_what_lies_beyond_every_picture_is_zero():
    extrinsics, intrinsics = cameras(1)
    at = Coordinates(torch.tensor([[0, 0, 0, 0], [0, 7, 7, 7]]), 1)
    views = Views(
        torch.ones(1, 1, 4, 4), extrinsics, intrinsics * torch.tensor([[[50], [50], [1]]])
    )
    assert not project_features(at, 8, views).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_views_in_half_precision_keep_their_mean(dtype):
    """A sum of ones in bfloat16 stays at 256: 300 equal views would have a mean of 0.85."""
    at = Coordinates(torch.tensor([[0, 3, 4, 5]]))
    extrinsics = torch.from_numpy(camera_extrinsics(0.0, 0.0, 2.0)).expand(300, -1, -1)
    intrinsics = torch.from_numpy(camera_intrinsics(np.pi / 2)).expand(300, -1, -1)
    views = Views(torch.ones(300, 2, 4, 4, dtype=dtype), extrinsics, intrinsics)
    torch.testing.assert_close(project_features(at, 8, views), torch.ones(1, 2))


def test_pictures_of_a_mesh_put_its_colours_back_on_its_voxels():
    """`Mesh.render` is the second way to know where a camera sees a point."""
    mesh = slab()
    placed = voxelize(mesh, 16)
    shown = Mesh(placed.corners.reshape(-1, 3), np.arange(72).reshape(-1, 3),
                 mesh.vertex_colors[mesh.faces].reshape(-1, 3))  # fmt: skip
    pictures = torch.from_numpy(shown.render(4, 64)).float().permute(0, 3, 1, 2) / 255
    yaws = np.radians(-16.0) + np.arange(4) * np.pi / 2
    extrinsics = np.stack([camera_extrinsics(yaw, np.radians(20.0), 10.0) for yaw in yaws])
    intrinsics = np.repeat(camera_intrinsics(np.radians(8.0))[None], 4, axis=0)
    views = Views(pictures, torch.tensor(extrinsics), torch.tensor(intrinsics))
    found = project_features(placed.at, 16, views)
    side = np.abs(placed.xyz - 7.5)[:, :2].max(1) > 7
    above, below = (found[side & (placed.xyz[:, 2] == z)].mean(0) for z in (10, 5))
    assert above[2] - above[0] > 0.1
    assert below[0] - below[2] > 0.1


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ((torch.zeros(2, 3, 4), *cameras(2)), "features must be"),
        ((torch.zeros(2, 3, 4, 4), *cameras(3)), "extrinsics of 2 views must be"),
        ((torch.zeros(0, 3, 4, 4), *cameras(1)), "features must be"),
    ],
)
def test_views_of_another_layout_are_refused(views, message):
    with pytest.raises(ValueError, match=message):
        Views(*views)


def test_views_are_asked_for_where_and_only_where_they_are_read(mini):
    views = Views(torch.zeros(2, 256, 4, 4), *cameras(2))
    with pytest.raises(ValueError, match="give no views"):
        mini.encode(slab(), views=views)
    reads_views = Encoders(mini.encoders.structure, mini.encoders.latent, "views")
    with pytest.raises(ValueError, match="give views=Views"):
        encode_mesh(reads_views, slab())
    narrow = Views(torch.zeros(2, 3, 4, 4), *cameras(2))
    with pytest.raises(ValueError, match="3 features per patch, but .* reads 256"):
        encode_mesh(reads_views, slab(), views=narrow)
    found = encode_mesh(reads_views, slab(), views=views)
    assert found.feats.shape == (len(voxelize(slab(), 16).xyz), 8)


def test_the_mini_knows_a_shape_again_after_both_encoders(mini, world):
    """A round trip through the shipped encoders and decoders, of an object never trained on."""
    toy = world.object(1, "val")
    mesh = toy_mesh(toy)
    latent = mini.encode(mesh)
    decoded = occupied(
        mini.models.structure_decoder(encode_structure(mini.encoders, latent.at, 16))
    )
    both = occupancy(latent.at, 16) + occupancy(Coordinates(decoded, 1), 16)
    assert (both == 2).sum() / (both > 0).sum() > 0.9
    surface = mini.decode(latent)
    points = surface.vertices.numpy()
    assert np.abs(toy.sdf(points)).mean() < 0.01  # of the longest side; a voxel is 0.06
    wrong = np.abs(surface.color[:, :3].numpy() - toy.colors(points)).mean()
    assert wrong < 0.1


def test_a_draw_from_the_posterior_repeats_with_its_generator_and_has_its_deviation(mini):
    mean = mini.encode(slab())
    draws = [
        mini.encode(slab(), generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0].feats, draws[1].feats)
    assert not torch.equal(draws[0].feats, draws[2].feats)
    features = distance_features(slab(), voxelize(slab(), 16))
    _, logvar = mini.encoders.latent(mean.replace(features))
    scaled = (draws[0].feats - mean.feats) / torch.exp(0.5 * logvar)
    assert abs(scaled.std() - 1) < 0.05
    assert torch.equal(
        encode_structure(mini.encoders, mean.at, 16, torch.Generator().manual_seed(0)),
        encode_structure(mini.encoders, mean.at, 16, torch.Generator().manual_seed(0)),
    )


def test_encoders_are_small_and_listed_in_the_mini_s_pipeline(mini):
    folder = sources.shipped(MINI_FOLDER)
    found = load_encoders(folder)
    assert found.reads == "distances"
    files = [folder / "ckpts" / name for name in ("ss_enc.safetensors", "slat_enc.safetensors")]
    assert sum(file.stat().st_size for file in files) < 2.5e6


def test_released_encoders_are_looked_for_where_the_official_repository_has_them(tmp_path):
    (tmp_path / "pipeline.json").write_text((sources.shipped(MINI_FOLDER) / "pipeline.json")
        .read_text().replace('"sparse_structure_encoder"', '"elsewhere"'))  # fmt: skip
    with pytest.raises(WeightsError, match=RELEASED_ENCODERS["sparse_structure_encoder"]):
        load_encoders(tmp_path)


def test_an_encoder_s_patches_are_projected_as_a_loop_over_voxels_would(world):
    """The mini's encoder on renders of a mesh; bilinear sampling once more in numpy."""
    encoder = installed().get("encoders", "dinov2-mini-reg").build()
    mesh = toy_mesh(world.object(1, "val"))
    images = [Image.fromarray(picture) for picture in mesh.render(2, 112)]
    patches = encoder.encode(encoder.prepare(images))["patches"]
    features = patches.view(2, 8, 8, -1).permute(0, 3, 1, 2)
    yaws = np.radians(-16.0) + np.arange(2) * np.pi
    extrinsics = np.stack([camera_extrinsics(yaw, np.radians(20.0), 10.0) for yaw in yaws])
    intrinsics = np.repeat(camera_intrinsics(np.radians(8.0))[None], 2, axis=0)
    views = Views(features, torch.tensor(extrinsics), torch.tensor(intrinsics))
    at = voxelize(mesh, 16).at
    found = project_features(at, 16, views).numpy()
    padded = np.pad(features.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for row in range(0, len(at), 50):
        point = np.append((at.coords[row, 1:].numpy() + 0.5) / 16 - 0.5, 1)
        expected = np.zeros(features.shape[1])
        for k in range(2):
            seen = intrinsics[k] @ (extrinsics[k] @ point)[:3]
            x, y = seen[:2] / seen[2] * 8 + 0.5  # patch centres at integers of the padded grid
            left, top = int(x), int(y)
            for i, j in np.ndindex(2, 2):
                share = (1 - abs(x - left - i)) * (1 - abs(y - top - j))
                expected += share * padded[k, :, top + j, left + i] / 2
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_released_encoders_are_fetched_when_first_asked_for_and_read_views(tmp_path, monkeypatch):
    """A repository laid out like the official one, whose pipeline.json lists no encoder."""
    trellis_tiny.write_pipeline(tmp_path / "repository")
    for seed, (role, file) in enumerate(trellis_tiny.ENCODERS.items()):
        model = shaken(architectures.build_model(file, role), seed)
        stem = tmp_path / "repository" / RELEASED_ENCODERS[role]
        loader.save_model(model, file, stem, torch.float16)
    asked = []

    def downloaded(name, repository, files):
        asked.extend(files)
        return tmp_path / "repository"

    monkeypatch.setattr(sources, "downloaded", downloaded)
    large = {spec.name: spec for spec in modalign_generators()}["trellis-image-large"].build()
    assert not any("enc" in file for file in asked)
    assert large.encoders.reads == "views"
    assert f"{RELEASED_ENCODERS['slat_encoder']}.safetensors" in asked
    assert large.encoders is large.encoders
