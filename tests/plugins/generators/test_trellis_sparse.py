"""Sparse layers against dense ones that do the same, and their tables against definitions."""

from __future__ import annotations

import pytest
import torch
from modalign_plugins.generators.trellis import layers
from modalign_plugins.generators.trellis.groups import TokenGroups
from modalign_plugins.generators.trellis.sparse import Coordinates, SparseTensor
from torch.nn import functional as F

from .trellis_worlds import off_grid, on_grid, scattered, shaken

SIDE = 6


@pytest.fixture
def at():
    return Coordinates(scattered(SIDE))


def randn(*shape, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def test_a_convolution_is_the_dense_one_at_active_voxels(at):
    conv = shaken(layers.SparseConv3d(5, 4).double())
    feats = randn(len(at), 5).requires_grad_()
    weight, bias = conv.conv.weight, conv.conv.bias
    grid = on_grid(at, feats, SIDE)
    dense = off_grid(at, F.conv3d(grid, weight.permute(0, 4, 1, 2, 3), bias, padding=1))
    ours = conv(SparseTensor(at, feats)).feats
    torch.testing.assert_close(ours, dense)
    upstream = randn(*ours.shape, seed=2)
    wanted = torch.autograd.grad(dense, (feats, weight, bias), upstream)
    got = torch.autograd.grad(ours, (feats, weight, bias), upstream)
    torch.testing.assert_close(got, wanted)


def test_small_chunks_change_nothing(at, monkeypatch):
    conv = shaken(layers.SparseConv3d(5, 4).double())
    feats = randn(len(at), 5).requires_grad_()

    def run():
        out = conv(SparseTensor(at, feats)).feats
        return out, *torch.autograd.grad(out.sum(), (feats, conv.conv.weight))

    whole = run()
    monkeypatch.setattr(layers, "CHUNK_ELEMENTS_CPU", {4: 300})
    torch.testing.assert_close(run(), whole)


def test_a_1x1_weight_is_read_not_transposed(at):
    conv = shaken(layers.SparseConv3d(5, 4, kernel_size=1).double())
    feats = randn(len(at), 5)
    stored = conv.conv.weight.flatten()  # the memory of (out, 1, 1, 1, in), as (in, out)
    expected = feats @ torch.stack([stored[row * 4 : row * 4 + 4] for row in range(5)])
    ours = conv(SparseTensor(at, feats)).feats
    torch.testing.assert_close(ours, expected + conv.conv.bias)
    naive = F.linear(feats, conv.conv.weight.view(4, 5), conv.conv.bias)
    assert (ours - naive).abs().max() > 0.1


def test_wide_convolutions_tap_by_tap_change_nothing(at, monkeypatch):
    conv = shaken(layers.SparseConv3d(5, 4).double())
    x = SparseTensor(at, randn(len(at), 5).requires_grad_())
    gathered = conv(x).feats
    monkeypatch.setattr(layers, "WIDE", 5)
    by_tap = conv(x).feats
    assert not torch.equal(by_tap, gathered)  # the sums are in another order
    torch.testing.assert_close(by_tap, gathered)
    upstream = randn(*gathered.shape, seed=2)
    operands = (x.feats, conv.conv.weight, conv.conv.bias)
    torch.testing.assert_close(
        torch.autograd.grad(by_tap, operands, upstream),
        torch.autograd.grad(gathered, operands, upstream),
    )


def test_convolving_children_through_their_parents_changes_nothing(at):
    conv = shaken(layers.SparseConv3d(5, 4).double())
    x = SparseTensor(at, randn(len(at), 5).requires_grad_())
    plain, fast = conv(layers.subdivide(x)).feats, conv.on_children(x).feats
    torch.testing.assert_close(fast, plain)
    upstream = randn(*plain.shape, seed=2)
    operands = (x.feats, conv.conv.weight, conv.conv.bias)
    torch.testing.assert_close(
        torch.autograd.grad(fast, operands, upstream),
        torch.autograd.grad(plain, operands, upstream),
    )


def test_convolving_upsampled_voxels_through_their_parents_changes_nothing(at):
    conv = shaken(layers.SparseConv3d(5, 4).double())
    like = SparseTensor(at, randn(len(at), 1))
    coarse = at.pooling(2).coarse
    x = SparseTensor(coarse, randn(len(coarse), 5).requires_grad_())
    plain, fast = conv(layers.upsample(x, like, 2)).feats, conv.on_upsampled(x, like, 2).feats
    torch.testing.assert_close(fast, plain)
    upstream = randn(*plain.shape, seed=2)
    operands = (x.feats, conv.conv.weight, conv.conv.bias)
    torch.testing.assert_close(
        torch.autograd.grad(fast, operands, upstream),
        torch.autograd.grad(plain, operands, upstream),
    )


def test_neighbours_of_children_need_no_search(at):
    fine = at.subdivided
    searched = Coordinates(fine.coords, at.batch_size)
    assert torch.equal(fine.neighbours, searched.neighbours)
    again = fine.subdivided
    assert torch.equal(again.neighbours, Coordinates(again.coords).neighbours)


def test_neighbours_never_cross_batch_elements():
    """Two elements with one voxel each, at opposite ends of the grid."""
    at = Coordinates(torch.tensor([[0, 5, 5, 5], [1, 0, 0, 0]]))
    found = at.neighbours < 2
    assert found.sum() == 2
    assert found[:, 13].all()


def test_pooling_divides_by_one_more_than_the_count():
    """A block of 8 is scaled by 8/9, a lone child by 1/2: the checkpoints were trained so."""
    block = torch.cartesian_prod(*[torch.arange(2)] * 3)
    coords = torch.cat([block, torch.tensor([[2, 0, 0]])])
    coords = torch.cat([torch.zeros(9, 1), coords], dim=1).int()
    x = SparseTensor.from_coords(coords, torch.ones(9, 1))
    down = layers.downsample(x, 2)
    torch.testing.assert_close(down.feats, torch.tensor([[8 / 9], [1 / 2]]))
    up = layers.upsample(down, x, 2)
    torch.testing.assert_close(up.feats, torch.tensor([8 / 9] * 8 + [1 / 2])[:, None])


def test_pooling_and_unpooling_have_the_gradients_of_finite_differences(at):
    feats = randn(len(at), 2).requires_grad_()

    def there_and_back(feats):
        x = SparseTensor(at, feats)
        down = layers.downsample(x, 2)
        return layers.upsample(down.replace(down.feats.sin()), x, 2).feats

    assert torch.autograd.gradcheck(there_and_back, (feats,), fast_mode=True)


def test_group_norm_treats_each_batch_element_alone(at):
    norm = shaken(layers.SparseGroupNorm32(2, 6))
    feats = randn(len(at), 6).float() * 3 + 1
    ours = norm(SparseTensor(at, feats)).split()
    for rows, normed in zip(SparseTensor(at, feats).split(), ours, strict=True):
        expected = F.group_norm(rows.T[None], 2, norm.weight, norm.bias, 1e-5)[0].T
        torch.testing.assert_close(normed, expected, atol=1e-5, rtol=1e-5)


def test_repeated_coordinates_are_further_batch_elements(at):
    twice = at.repeated(2)
    assert twice is at.repeated(2)
    assert twice.segments.counts == at.segments.counts * 2
    first, second = twice.coords.split(len(at))
    assert torch.equal(first, at.coords)
    assert torch.equal(second[:, 1:], at.coords[:, 1:])
    assert torch.equal(second[:, 0], at.coords[:, 0] + at.batch_size)


def test_rows_of_a_batch_element_must_be_consecutive():
    with pytest.raises(ValueError, match="consecutive"):
        Coordinates(torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]))
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        Coordinates(torch.zeros(3, 3))


def test_packing_keeps_every_token_once_and_undoes_itself():
    keys = torch.randint(0, 40, (500,), generator=torch.Generator().manual_seed(0))
    groups = TokenGroups.from_keys(keys)
    x = torch.randn(500, 3)
    packed = groups.pack(x)
    assert len(packed) < 500 * 1.3
    torch.testing.assert_close(groups.unpack(packed), x)
    for bucket in groups.buckets:
        rows = groups.index[bucket.start : bucket.start + bucket.size * bucket.length]
        for group in rows.view(bucket.size, bucket.length):
            real = group[group < 500]
            assert len(real) == (keys == keys[real[0]]).sum()
            assert len(torch.unique(keys[real])) == 1


def test_windows_shift_by_adding_without_wrapping():
    coords = torch.tensor([[0, 3, 0, 0], [0, 4, 0, 0], [0, 7, 0, 0], [1, 4, 0, 0]])
    at = Coordinates(coords)
    assert at.windows(8, 0) is at.windows(8, 0)
    unshifted = at.windows(8, 0).unpack(group_numbers(at.windows(8, 0)))
    shifted = at.windows(8, 4).unpack(group_numbers(at.windows(8, 4)))
    assert same_partition(unshifted, [0, 0, 0, 1])
    assert same_partition(shifted, [0, 1, 1, 2])


def group_numbers(groups):
    """A number for the group of every packed row."""
    numbers, next_number = [], 0
    for bucket in groups.buckets:
        rows = torch.arange(bucket.size).repeat_interleave(bucket.length) + next_number
        numbers.append(rows)
        next_number += bucket.size
    return torch.cat(numbers)


def same_partition(left, right):
    pairs = set(zip(left.tolist(), right, strict=True))
    return len(pairs) == len(set(left.tolist())) == len(set(right))
