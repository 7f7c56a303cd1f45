"""The networks: released layouts, exact savings, independence of the batch, training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from modalign_plugins.generators.trellis import architectures, attention, loader, sizes
from modalign_plugins.generators.trellis.blocks import FlowContext, ModulatedBlock, WindowedBlock
from modalign_plugins.generators.trellis.config import ModelFile
from modalign_plugins.generators.trellis.groups import Segments, TokenGroups
from modalign_plugins.generators.trellis.rows import RUN
from modalign_plugins.generators.trellis.slat_flow import SLatFlowModel
from modalign_plugins.generators.trellis.slat_vae import SLatEncoder, SLatMeshDecoder
from modalign_plugins.generators.trellis.sparse import Coordinates, SparseTensor
from modalign_plugins.generators.trellis.structure_flow import SparseStructureFlowModel
from modalign_plugins.generators.trellis.structure_vae import (
    SparseStructureDecoder,
    SparseStructureEncoder,
    sample_posterior,
)
from torch import nn

from .trellis_worlds import scattered, shaken

RELEASED = json.loads((Path(__file__).parent / "trellis_released.json").read_text())
FLOW = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 24,
    "cond_channels": 10,
    "num_blocks": 2,
    "num_heads": 2,
    "qk_rms_norm": True,
}


@pytest.fixture(scope="module")
def structure_flow():
    return shaken(SparseStructureFlowModel(resolution=4, patch_size=2, **FLOW))


@pytest.fixture(scope="module")
def latent_flow():
    return shaken(SLatFlowModel(resolution=8, io_block_channels=[12], **FLOW))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def described(file):
    """A released network on the meta device, in the types of its file."""
    released = RELEASED[file]
    with torch.device("meta"):
        model = architectures.build_model(
            ModelFile(name=released["name"], args=released["args"]), file
        )
    architectures.cast_trunk(model, torch.float16)
    return model


@pytest.mark.parametrize("file", RELEASED)
def test_a_released_network_has_the_keys_shapes_types_and_sizes_of_its_file(file):
    """Against the listed tensors of each published checkpoint."""
    released, model = RELEASED[file], described(file)
    assert sum(p.numel() for p in model.parameters()) == released["parameters"]
    lines = [
        f"{key} {'x'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"
        for key, tensor in model.state_dict().items()
    ]
    assert len(lines) == released["tensors"]
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() == released["sha256"]


def file_size(state):
    """Bytes of a safetensors file: length, header padded to 8, tensors; widest types first."""
    names = {torch.float32: "F32", torch.float16: "F16"}
    order = sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header, end = {}, 0
    for key, tensor in order:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + -length % 8 + end


@pytest.mark.parametrize("file", RELEASED)
def test_a_released_file_has_as_many_bytes_as_its_network_predicts(file):
    """The published sizes; of text pipelines, what the reference's classes predict."""
    assert file_size(described(file).state_dict()) == RELEASED[file]["bytes"]


def test_the_predicted_size_is_that_of_a_written_file(tmp_path):
    model = SparseStructureDecoder(
        out_channels=1, latent_channels=2, channels=[8, 4], num_res_blocks=1
    )
    loader.save_model(model, ModelFile(name="", args={}), tmp_path / "x", torch.float16)
    architectures.cast_trunk(model, torch.float16)
    assert (tmp_path / "x.safetensors").stat().st_size == file_size(model.state_dict())


PIPELINES = {"trellis-image-large": (sizes.LARGE_PIPELINE, sizes.LARGE_MODELS)} | {
    name: (text.pipeline, text.models) for name, text in sizes.TEXT_PIPELINES.items()
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_built_in_pipeline_is_the_released_one(name):
    pipeline, models = PIPELINES[name]
    assert set(pipeline.args.models) == set(models) == set(loader.ROLES)
    for role, model in models.items():
        released = RELEASED[pipeline.args.models[role].rpartition("/")[2]]
        known = {**released["args"]}
        for argument, value in model.args.items():
            assert known.pop(argument, value) == value, (role, argument)
        assert set(known) <= set(architectures.FIXED_ARGUMENTS), (role, known)
        assert released["name"].removeprefix("Elastic") == model.name


def test_attention_in_groups_is_masked_attention():
    keys = torch.randint(0, 7, (60,), generator=torch.Generator().manual_seed(0))
    qkv = randn(60, 3, 2, 8)
    ours = attention.attend_in_groups(qkv, TokenGroups.from_keys(keys))
    q, k, v = qkv.unbind(1)
    mask = (keys[:, None] == keys)[None]
    dense = attention.attend(q, k, v, mask)
    torch.testing.assert_close(ours, dense, atol=1e-6, rtol=1e-5)


def test_the_half_precision_path_on_the_cpu_is_the_fused_one():
    q, k, v = (randn(3, 5, 2, 8, seed=seed).bfloat16() for seed in range(3))
    mask = torch.rand(3, 1, 1, 5, generator=torch.Generator().manual_seed(0)) < 0.7
    mask[..., 0] = True
    products = attention.attend(q, k, v, mask)
    with torch.no_grad():
        fused = attention.attend(q, k, v, mask)
    torch.testing.assert_close(products, fused, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("counts", [[RUN + 90, 40], [700, 700], [3 * RUN]])
def test_blocks_in_runs_of_rows_are_blocks_at_once(counts):
    """Runs are taken without gradient only, so the same call with it is the oracle."""
    block = shaken(ModulatedBlock(16, 10, 2, 4, True, False))
    segments = Segments(counts, torch.device("cpu"))
    x, times = randn(sum(counts), 16), randn(len(counts), 16)
    context = block.cross_attn.read(randn(len(counts), 3, 10))
    at_once = block(x, times, context, segments).detach()
    with torch.no_grad():
        in_runs = block(x, times, context, segments)
    torch.testing.assert_close(in_runs, at_once, atol=2e-5, rtol=1e-5)


def test_windowed_blocks_in_runs_of_rows_are_blocks_at_once():
    block = shaken(WindowedBlock(16, 2, 4))
    keys = torch.randint(0, 30, (RUN + 300,), generator=torch.Generator().manual_seed(0))
    x, groups = randn(len(keys), 16), TokenGroups.from_keys(keys)
    at_once = block(x, groups).detach()
    with torch.no_grad():
        torch.testing.assert_close(block(x, groups), at_once, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", [False, True])
def test_an_all_zero_context_gives_every_query_one_constant(norm):
    """All keys are equal, so attention is uniform: nothing needs to be computed."""
    cross = shaken(attention.CrossAttention(16, 10, 4, qk_rms_norm=norm))
    segments = Segments([5, 7], torch.device("cpu"))
    x = randn(12, 16)
    zeros = cross.read(torch.zeros(2, 3, 10))
    computed = cross(x, zeros, segments)
    nothing = attention.KeysValues(zeros.keys[:0], zeros.values[:0])
    torch.testing.assert_close(cross(x, nothing, segments), computed, atol=1e-6, rtol=1e-5)


def test_one_guided_call_equals_two_calls_of_the_structure_flow(structure_flow):
    x, t, condition = randn(1, 4, 4, 4, 4), torch.tensor([700.0]), randn(1, 5, 10)
    context = structure_flow.read(condition)
    both = structure_flow(x.repeat(2, 1, 1, 1, 1), t.repeat(2), context)
    torch.testing.assert_close(both[:1], structure_flow(x, t, condition), atol=1e-5, rtol=1e-5)
    without = structure_flow(x, t, torch.zeros_like(condition))
    torch.testing.assert_close(both[1:], without, atol=1e-5, rtol=1e-5)
    assert (both[:1] - both[1:]).abs().max() > 1e-3


def test_one_guided_call_equals_two_calls_of_the_latent_flow(latent_flow):
    coords = scattered(8, batch=1)
    at, t, condition = Coordinates(coords), torch.tensor([300.0]), randn(1, 5, 10)
    feats = randn(len(at), 4)
    both = latent_flow(
        SparseTensor(at.repeated(2), feats.repeat(2, 1)), t.repeat(2), latent_flow.read(condition)
    ).feats
    alone = latent_flow(SparseTensor(at, feats), t, condition).feats
    without = latent_flow(SparseTensor(at, feats), t, torch.zeros_like(condition)).feats
    torch.testing.assert_close(both[: len(at)], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[len(at) :], without, atol=1e-5, rtol=1e-5)


def test_one_condition_serves_all_and_another_number_is_refused(structure_flow, latent_flow):
    """A tensor never leaves batch elements without a condition by accident."""
    x, t, condition = randn(2, 4, 4, 4, 4), torch.tensor([1.0, 2.0]), randn(1, 5, 10)
    torch.testing.assert_close(
        structure_flow(x, t, condition), structure_flow(x, t, condition.repeat(2, 1, 1))
    )
    with pytest.raises(ValueError, match="condition of 3 for a batch of 2"):
        structure_flow(x, t, condition.repeat(3, 1, 1))
    at = Coordinates(scattered(8, batch=3))
    with pytest.raises(ValueError, match="condition of 2 for a batch of 3"):
        latent_flow(SparseTensor(at, randn(len(at), 4)), t, condition.repeat(2, 1, 1))


def test_a_context_larger_than_the_batch_is_refused(structure_flow):
    context = structure_flow.read(randn(3, 5, 10))
    with pytest.raises(ValueError, match="context of 3"):
        structure_flow(randn(2, 4, 4, 4, 4), torch.tensor([1.0, 2.0]), context)
    assert isinstance(context, FlowContext)


@pytest.mark.parametrize("kind", ["flow", "encoder", "decoder"])
def test_batch_elements_do_not_see_each_other(kind, latent_flow):
    at = Coordinates(scattered(8))
    feats, t, condition = randn(len(at), 4), torch.tensor([10.0, 400.0, 900.0]), randn(3, 5, 10)
    sizes_ = {"resolution": 8, "model_channels": 16, "latent_channels": 4, "num_blocks": 2}
    if kind == "encoder":
        model = shaken(SLatEncoder(in_channels=4, num_heads=2, window_size=4, **sizes_))
    elif kind == "decoder":
        model = shaken(SLatMeshDecoder(num_heads=2, window_size=4, num_groups=2, **sizes_))

    def run(x, rows):
        if kind == "flow":
            return latent_flow(x, t[rows], condition[rows]).feats
        out = model(x)
        return torch.cat(out, dim=1) if kind == "encoder" else out.feats

    whole = run(SparseTensor(at, feats), slice(None))
    per_voxel = len(whole) // len(at)
    start = 0
    for element, rows in enumerate(feats.split(at.segments.counts)):
        coords = at.coords[at.coords[:, 0] == element].clone()
        coords[:, 0] = 0
        alone = run(SparseTensor.from_coords(coords, rows), slice(element, element + 1))
        end = start + len(rows) * per_voxel
        torch.testing.assert_close(whole[start:end], alone, atol=2e-4, rtol=2e-4)
        start = end


def test_a_new_flow_predicts_nothing_and_learns():
    """Output layers start at zero; a few steps towards a target must lower the error."""
    torch.manual_seed(0)
    model = SLatFlowModel(resolution=8, io_block_channels=[12], **FLOW)
    at = Coordinates(scattered(8))
    x, target = SparseTensor(at, randn(len(at), 4)), randn(len(at), 4, seed=1) * 0.1 + 0.5
    t, condition = torch.tensor([10.0, 400.0, 900.0]), randn(3, 5, 10)
    assert model(x, t, condition).feats.abs().max() == 0
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = (model(x, t, condition).feats - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_structure_vae_halves_and_doubles_and_every_weight_gets_a_gradient():
    encoder = shaken(
        SparseStructureEncoder(
            in_channels=1, latent_channels=4, num_res_blocks=1, channels=[8, 8, 16]
        )
    )
    decoder = shaken(
        SparseStructureDecoder(
            out_channels=1, latent_channels=4, num_res_blocks=1, channels=[16, 8, 8]
        )
    )
    grid = (randn(2, 1, 8, 8, 8) > 0).float()
    mean, logvar = encoder(grid)
    assert mean.shape == logvar.shape == (2, 4, 2, 2, 2)
    latent = sample_posterior(mean, logvar, torch.Generator().manual_seed(0))
    logits = decoder(latent)
    assert logits.shape == grid.shape
    nn.functional.binary_cross_entropy_with_logits(logits, grid).backward()
    for module in (encoder, decoder):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_every_weight_of_the_mesh_decoder_gets_a_gradient():
    model = shaken(
        SLatMeshDecoder(
            resolution=8,
            model_channels=16,
            latent_channels=4,
            num_blocks=2,
            num_heads=2,
            window_size=4,
            num_groups=2,
        )
    )
    at = Coordinates(scattered(8))
    raw = model(SparseTensor(at, randn(len(at), 4)))
    assert raw.feats.shape == (64 * len(at), 101)
    assert model.mesh_resolution == 32
    raw.feats.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_autocast_trains_sparse_layers_in_half_precision():
    model = shaken(SLatFlowModel(resolution=8, io_block_channels=[12], **FLOW))
    at = Coordinates(scattered(8))
    x, t, condition = (
        SparseTensor(at, randn(len(at), 4)),
        torch.tensor([1.0, 2, 3]),
        randn(3, 5, 10),
    )
    full = model(x, t, condition).feats
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(x, t, condition).feats
        half.float().square().mean().backward()
    assert (half.float() - full).norm() / full.norm() < 0.1
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
