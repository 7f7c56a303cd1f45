"""TRELLIS.2's networks: sizes, rotary places, shared modulation, subdivision, decoders.

No output of the reference exists to compare with: expected numbers are algebra, counts, and dense
second implementations.
"""

from __future__ import annotations

import math

import pytest
import torch
from modalign_plugins.generators.trellis import groups, rows
from modalign_plugins.generators.trellis.architectures import build_model, cast_trunk
from modalign_plugins.generators.trellis.sparse import Coordinates, SparseTensor
from modalign_plugins.generators.trellis.trellis2 import loader, modalign_generators, sizes
from modalign_plugins.generators.trellis.trellis2.decoder import ConvNeXtBlock, UpsampleBlock
from modalign_plugins.generators.trellis.trellis2.flow import (
    LatentFlowModel,
    StructureFlowModel,
    rotate,
    rotation_angles,
)
from modalign_plugins.generators.trellis.trellis2.subdivision import Subdivision
from torch.nn.functional import conv3d, gelu, layer_norm, linear, silu

from modalign import WeightsError

from .trellis2_tiny import MODELS, model
from .trellis_worlds import off_grid, on_grid, scattered, shaken

FLOW = {
    "resolution": 3,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 28,
    "cond_channels": 10,
    "num_blocks": 2,
    "num_heads": 2,
    "mlp_ratio": 2,
}
# Counted by hand from the architecture: width C 1536, MLP M 8192, condition 1024, 30 blocks.
C, M, CONDITION = 1536, 8192, 1024
BLOCK = (
    (3 * C * C + 3 * C)  # self-attention in
    + 3 * (C * C + C)  # its way out, and the cross-attention's way in and out
    + (CONDITION * 2 * C + 2 * C)  # keys and values
    + (2 * C * M + M + C)  # MLP
    + 4 * C  # RMS gains of queries and keys, twice
    + 2 * C  # the one affine norm
    + 6 * C  # its own modulation
)
TRUNK = 30 * BLOCK + (256 * C + C) + (C * C + C) + (C * 6 * C + 6 * C)
FLOW_SIZES = {
    "structure_flow": TRUNK + (8 * C + C) + (8 * C + 8),
    "shape_flow": TRUNK + (32 * C + C) + (32 * C + 32),
    "texture_flow": TRUNK + (64 * C + C) + (32 * C + 32),
}


def decoder_size(predicts, out):
    widths, numbers = (1024, 512, 256, 128, 64), (4, 16, 8, 4, 0)
    total = 32 * widths[0] + widths[0] + widths[-1] * out + out
    for c, number in zip(widths, numbers, strict=True):
        total += number * ((27 * c * c + c) + 2 * c + (8 * c * c + 5 * c))
    for c, o in zip(widths, widths[1:], strict=False):
        total += (27 * c * 8 * o + 8 * o) + (27 * o * o + o) + 2 * c + predicts * (8 * c + 8)
    return total


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_the_released_networks_have_the_sizes_counted_by_hand():
    """Three flow models of 1.29 B, published as 1.3 B each, and two decoders of 0.47 B."""
    (spec,) = modalign_generators()
    networks = spec.build(weights="random", device="meta").networks
    for field, expected in FLOW_SIZES.items():
        assert parameters(getattr(networks, field)()) == expected
        assert round(expected / 1e9, 1) == 1.3
    assert parameters(networks.shape_decoder()) == decoder_size(True, 7)
    assert parameters(networks.texture_decoder()) == decoder_size(False, 6)
    assert parameters(networks.structure_decoder()) == 73_671_201  # TRELLIS's own file


def test_the_hidden_width_of_the_released_ratio_is_8192():
    assert int(1536 * sizes.MODELS["shape_slat_flow_model_512"].args["mlp_ratio"]) == M


def test_the_trunk_alone_is_in_the_type_asked_for():
    network = model("shape_slat_flow_model_512")
    cast_trunk(network, torch.bfloat16)
    types = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    assert types["blocks.0.self_attn.to_qkv.weight"] == torch.bfloat16
    for name in ("blocks.0.modulation", "adaLN_modulation.1.weight", "out_layer.weight"):
        assert types[name] == torch.float32


def test_places_turn_21_pairs_per_axis_and_leave_the_last_one():
    """Head width 128: 64 pairs, 3 * 21 of them turned."""
    angle = rotation_angles(torch.tensor([[1, 2, 3]]), 128)[0]
    assert angle.shape == (64,)
    assert angle[-1] == 0
    for axis, place in enumerate((1, 2, 3)):
        expected = [place * 10000 ** (-j / 21) for j in range(21)]
        torch.testing.assert_close(angle[21 * axis : 21 * axis + 21], torch.tensor(expected))


def test_turning_is_a_complex_product_of_neighbouring_pairs():
    x, angle = randn(5, 2, 14), randn(5, 7, seed=1)
    turned = rotate(x, (angle.cos(), angle.sin()))
    numbers = torch.view_as_complex(x.unflatten(-1, (7, 2)).contiguous())
    expected = torch.view_as_real(numbers * torch.polar(torch.ones(5, 7), angle)[:, None])
    torch.testing.assert_close(turned, expected.flatten(-2))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_attention_sees_differences_of_places_alone():
    """Products of turned vectors do not change when all places move together."""
    q, k = randn(1, 1, 14), randn(1, 1, 14, seed=1)

    def product(a, b):
        turned = []
        for vector, place in ((q, a), (k, b)):
            angle = rotation_angles(torch.tensor([place]), 14)
            turned.append(rotate(vector, (angle.cos(), angle.sin())))
        return (turned[0] * turned[1]).sum()

    near, far = product([1, 2, 3], [4, 4, 1]), product([11, 22, 3], [14, 24, 1])
    torch.testing.assert_close(near, far)
    assert not torch.isclose(near, product([1, 2, 3], [4, 5, 1]))


def reference_velocity(network, x, t, condition, xyz):
    """The flow model for one sample, written out from its description with plain products."""

    def norm(h, weight=None, bias=None, eps=1e-6):
        return layer_norm(h, h.shape[-1:], weight, bias, eps)

    def heads(h):
        return h.unflatten(-1, (2, -1)).transpose(0, 1)  # (H, N, D)

    def unit(h, gamma):
        return h / h.norm(dim=-1, keepdim=True) * gamma[:, None] * math.sqrt(h.shape[-1])

    def attend(q, k, v):
        score = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return (score.softmax(dim=-1) @ v).transpose(0, 1).flatten(1)

    def turn(h):
        out = h.clone()
        n = h.shape[-1] // 2 // 3
        for axis in range(3):
            for j in range(n):
                angle = xyz[:, axis] * 10000.0 ** (-j / n)
                at = 2 * (axis * n + j)
                out[..., at] = h[..., at] * angle.cos() - h[..., at + 1] * angle.sin()
                out[..., at + 1] = h[..., at] * angle.sin() + h[..., at + 1] * angle.cos()
        return out

    h = network.input_layer(x)
    shared = network.adaLN_modulation(network.t_embedder(t))[0]
    for block in network.blocks:
        shift, scale, gate, shift2, scale2, gate2 = (shared + block.modulation).chunk(6)
        own, cross = block.self_attn, block.cross_attn
        q, k, v = (heads(p) for p in own.to_qkv(norm(h) * (1 + scale) + shift).chunk(3, dim=-1))
        q, k = turn(unit(q, own.q_rms_norm.gamma)), turn(unit(k, own.k_rms_norm.gamma))
        h = h + own.to_out(attend(q, k, v)) * gate
        q = unit(heads(cross.to_q(norm(h, block.norm2.weight, block.norm2.bias))),
                 cross.q_rms_norm.gamma)  # fmt: skip
        k, v = (heads(p) for p in cross.to_kv(condition).chunk(2, dim=-1))
        h = h + cross.to_out(attend(q, unit(k, cross.k_rms_norm.gamma), v))
        first, _, second = block.mlp.mlp
        inner = linear(norm(h) * (1 + scale2) + shift2, first.weight, first.bias)
        h = h + second(gelu(inner, approximate="tanh")) * gate2
    return network.out_layer(norm(h, eps=1e-5))


@pytest.fixture(scope="module")
def structure_flow():
    return shaken(StructureFlowModel(**FLOW)).requires_grad_(False)


@pytest.fixture(scope="module")
def latent_flow():
    return shaken(LatentFlowModel(**FLOW | {"in_channels": 6}), seed=1).requires_grad_(False)


def test_runs_of_rows_change_nothing(latent_flow, monkeypatch):
    """Runs of 8 rows, as without gradients, beside all rows at once, as with them."""
    monkeypatch.setattr(rows, "RUN", 8)
    counts = [19, 3, 8]
    at = Coordinates(
        torch.tensor([[b, k, 2 * k, b] for b, n in enumerate(counts) for k in range(n)])
    )
    draw = torch.Generator().manual_seed(0)
    x = SparseTensor(at, torch.randn(sum(counts), 6, generator=draw))
    t, condition = torch.tensor([900.0, 10.0, 400.0]), torch.randn(3, 5, 10, generator=draw)
    calls = []
    in_runs = groups.in_runs
    monkeypatch.setattr(groups, "in_runs", lambda *a: calls.append(a) or in_runs(*a))
    with torch.no_grad():
        short = latent_flow(x, t, condition).feats
    assert len(calls) == 3 * len(latent_flow.blocks)
    with torch.enable_grad():
        whole = latent_flow(x, t, condition).feats
    assert len(calls) == 3 * len(latent_flow.blocks)
    torch.testing.assert_close(short, whole, atol=1e-5, rtol=1e-5)


def test_the_latent_flow_is_what_its_description_says(latent_flow):
    coords = scattered(batch=2)
    at = Coordinates(coords)
    x, known = randn(len(at), 4), randn(len(at), 2, seed=1)
    t, condition = torch.tensor([700.0, 250.0]), randn(2, 5, 10, seed=2)
    v = latent_flow(SparseTensor(at, x), t, condition, known).feats
    for k in range(2):
        rows = coords[:, 0] == k
        expected = reference_velocity(
            latent_flow,
            torch.cat([x, known], dim=1)[rows],
            t[k : k + 1],
            condition[k],
            coords[rows, 1:].float(),
        )
        torch.testing.assert_close(v[rows], expected, atol=2e-4, rtol=2e-4)


def test_the_structure_flow_is_the_same_trunk_over_a_full_grid(structure_flow):
    """Cells in x-major order; each has the place of its indices."""
    x, condition = randn(1, 4, 3, 3, 3), randn(1, 5, 10, seed=1)
    t = torch.tensor([400.0])
    v = structure_flow(x, t, condition)
    cells = [(i, j, k) for i in range(3) for j in range(3) for k in range(3)]
    tokens = torch.stack([x[0, :, i, j, k] for i, j, k in cells])
    expected = reference_velocity(
        structure_flow, tokens, t, condition[0], torch.tensor(cells).float()
    )
    got = torch.stack([v[0, :, i, j, k] for i, j, k in cells])
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=2e-4)


def test_the_branch_without_condition_is_a_condition_of_zeros(structure_flow):
    """With normalised keys, too: all are equal, so what is read is the value bias."""
    x, condition = randn(1, 4, 3, 3, 3), randn(1, 5, 10, seed=1)
    t = torch.tensor([400.0, 400.0])
    both = structure_flow(x.repeat(2, 1, 1, 1, 1), t, structure_flow.read(condition))
    zeros = structure_flow(x, t[:1], torch.zeros_like(condition))
    torch.testing.assert_close(both[1:], zeros, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[:1], structure_flow(x, t[:1], condition), atol=1e-4, rtol=1e-4)


def test_places_matter(latent_flow):
    """A pair of voxels one step apart, and two steps apart, with the same features."""
    x, known = randn(2, 4), randn(2, 2, seed=1)
    t, condition = torch.tensor([500.0]), randn(1, 5, 10)
    outputs = [
        latent_flow(
            SparseTensor(Coordinates(torch.tensor([[0, 0, 0, 0], [0, 0, 0, far]])), x),
            t,
            condition,
            known,
        ).feats
        for far in (1, 2)
    ]
    assert not torch.allclose(*outputs, atol=1e-4)


def subdivided(at, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return Subdivision.of(at, torch.rand(len(at), 8, generator=draw) < 0.4)


def test_a_child_lies_where_its_number_says():
    """Number x + 2 y + 4 z."""
    at = Coordinates(torch.tensor([[0, 3, 4, 5]]))
    to = Subdivision.of(at, torch.ones(1, 8, dtype=torch.bool))
    for number, row in enumerate(to.fine.coords.tolist()):
        x, y, z = number % 2, number // 2 % 2, number // 4
        assert row == [0, 6 + x, 8 + y, 10 + z]
    assert to.parent.tolist() == [0] * 8
    only = Subdivision.of(at, torch.tensor([[False, True] + [False] * 2 + [True] + [False] * 3]))
    assert only.fine.coords.tolist() == [[0, 7, 8, 10], [0, 6, 8, 11]]


def test_neighbours_of_children_are_those_that_a_search_finds():
    at = Coordinates(scattered())
    for _ in range(2):  # the second time from a table that was itself not searched for
        to = subdivided(at)
        assert torch.equal(to.fine.neighbours, Coordinates(to.fine.coords, 3).neighbours)
        assert to.fine.batch_size == 3
        at = to.fine


def test_channels_go_to_their_child():
    """Channel run k of a parent is child k's."""
    at = Coordinates(scattered(batch=1))
    to = subdivided(at)
    feats = torch.arange(len(at) * 16).float().view(len(at), 16)
    got = to.channels_to_space(feats)
    for row, slot in enumerate(to.slot.tolist()):
        parent, child = divmod(slot, 8)
        assert torch.equal(got[row], feats[parent, 2 * child : 2 * child + 2])


def dense(convolution, x, side):
    """A sparse convolution as a dense one, read at the voxels."""
    weight = convolution.conv.weight.permute(0, 4, 1, 2, 3)
    grid = conv3d(on_grid(x.at, x.feats, side), weight, convolution.conv.bias, padding=1)
    return off_grid(x.at, grid)


def test_a_convnext_block_is_what_its_description_says():
    block = shaken(ConvNeXtBlock(4)).requires_grad_(False)
    at = Coordinates(scattered())
    x = SparseTensor(at, randn(len(at), 4))
    h = layer_norm(dense(block.conv, x, 6), (4,), block.norm.weight, block.norm.bias, 1e-6)
    expected = x.feats + block.mlp[2](silu(block.mlp[0](h)))
    torch.testing.assert_close(block(x).feats, expected, atol=1e-5, rtol=1e-5)


def test_an_upsampling_block_is_what_its_description_says():
    """16 channels spread over 8 children as 2; the skip repeats each of the 2 three times."""
    block = shaken(UpsampleBlock(16, 6, predicts=True)).requires_grad_(False)
    at = Coordinates(scattered(batch=1))
    x = SparseTensor(at, randn(len(at), 16))
    logits = block.to_subdiv(x.feats)
    exists = block.subdivide(x)
    assert torch.equal(exists, logits > 0)
    to = Subdivision.of(at, exists)
    normed = layer_norm(x.feats, (16,), block.norm1.weight, block.norm1.bias, 1e-6)
    wide = dense(block.conv1, x.replace(silu(normed)), 6)  # (N, 8 * 6)
    h = torch.stack([wide[s // 8, s % 8 * 6 :][:6] for s in to.slot.tolist()])
    h = SparseTensor(to.fine, silu(layer_norm(h, (6,), eps=1e-6)))
    skip = torch.stack([x.feats[s // 8, s % 8 * 2 :][:2] for s in to.slot.tolist()])
    skip = skip[:, [0, 0, 0, 1, 1, 1]]
    expected = dense(block.conv2, h, 12) + skip
    torch.testing.assert_close(block(x, to).feats, expected, atol=1e-4, rtol=1e-4)


def test_a_texture_lies_at_the_voxels_of_its_shape():
    shape, texture = (
        model(f"{kind}_slat_decoder").requires_grad_(False) for kind in ("shape", "tex")
    )
    at = Coordinates(scattered(side=4, batch=2))
    voxels, subdivisions = shape(SparseTensor(at, randn(len(at), 4)))
    material = texture(SparseTensor(at, randn(len(at), 4, seed=1)), subdivisions)
    assert material.at is voxels.at
    assert voxels.feats.shape == (len(voxels.at), 7)
    assert material.feats.shape == (len(voxels.at), 6)
    assert voxels.at.coords[:, 1:].max() < 4 * shape.factor


def test_elements_of_a_batch_are_decoded_as_if_alone():
    shape = model("shape_slat_decoder").requires_grad_(False)
    coords = scattered(side=4, batch=2)
    latent = randn(len(coords), 4)
    both, _ = shape(SparseTensor(Coordinates(coords), latent))
    second = coords[:, 0] == 1
    alone_at = coords[second] - torch.tensor([1, 0, 0, 0], dtype=torch.int32)
    alone, _ = shape(SparseTensor(Coordinates(alone_at), latent[second]))
    rows = both.at.coords[:, 0] == 1
    assert torch.equal(both.at.coords[rows, 1:], alone.at.coords[:, 1:])
    torch.testing.assert_close(both.feats[rows], alone.feats, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("role", "args", "message"),
    [
        ("shape_slat_flow_model_512", {"pe_mode": "ape"}, "pe_mode = 'ape' is not supported"),
        ("shape_slat_flow_model_512", {"share_mod": False}, "share_mod = False is not supported"),
        ("shape_slat_flow_model_512", {"num_heads": 3}, "3 heads of even width do not divide 28"),
        ("shape_slat_decoder", {"colour": 1}, "has no argument 'colour'"),
        ("shape_slat_decoder", {"num_blocks": [1]}, "3 widths but blocks of 1 levels"),
        ("shape_slat_decoder", {"model_channels": [32, 10, 8]}, "do not spread over 8 children"),
        ("tex_slat_decoder", {"block_type": ["Swin"] * 3}, "block_type = .* is not supported"),
    ],
)
def test_an_architecture_we_lack_is_refused(role, args, message):
    file = MODELS[role].model_copy(update={"args": MODELS[role].args | args})
    with pytest.raises(WeightsError, match=message):
        build_model(file, "here.json", loader.TRELLIS2)
