"""Speed of each stage of TRELLIS at full width, next to a plain implementation of the same maths.

`pytest benchmarks/test_trellis.py -s`: every test prints, from one run in which the two take
turns, seconds, the ratio, FLOP/s, and the share of what this machine's matrix product reaches
there and then. Networks have their released widths and few of their blocks; all blocks are alike.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from modalign_plugins.generators.trellis.architectures import cast_trunk
from modalign_plugins.generators.trellis.flexicubes import MESH_CHANNELS, extract_surfaces
from modalign_plugins.generators.trellis.layers import SparseConv3d
from modalign_plugins.generators.trellis.slat_flow import SLatFlowModel
from modalign_plugins.generators.trellis.slat_vae import SLatMeshDecoder
from modalign_plugins.generators.trellis.sparse import Coordinates, SparseTensor
from modalign_plugins.generators.trellis.structure_flow import SparseStructureFlowModel
from modalign_plugins.generators.trellis.structure_vae import SparseStructureDecoder
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.trellis_asset import compile_blocks, made
from modalign import installed

FLOW: dict[str, Any] = {
    "in_channels": 8, "out_channels": 8, "model_channels": 1024, "cond_channels": 1024,
    "num_heads": 16, "qk_rms_norm": True,
}  # fmt: skip
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOKENS = 1374  # of a condition
ROUNDS = 3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def seconds(run: Callable[[], Any]) -> float:
    """How long one call takes, until the device has finished it."""
    start = time.perf_counter()
    run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def gemm(rows: int, inner: int, columns: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A matrix product of these sizes."""
    a = torch.randn(rows, inner, device=DEVICE).to(dtype)
    b = torch.randn(inner, columns, device=DEVICE).to(dtype)
    return lambda: a @ b


def flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in one call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


# How far ours may be from plain: the norm of the difference by that of plain.
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def compare(
    benchmark: Any,
    ours: Callable[[], Tensor],
    plain: Callable[[], Tensor],
    dtype: torch.dtype,
    work: int | None = None,
) -> None:
    """Let both and a 2048^3 matrix product take turns; prints medians.

    Both must come to the same, unless plain is only as much `work`.
    """
    product, cube = gemm(2048, 2048, 2048, dtype), 2 * 2048**3
    times: dict[str, list[float]] = {"ours": [], "plain": [], "product": []}
    with torch.no_grad():
        product()
        found, expected = ours(), plain()
        if work is None:
            work = flops(ours)
            off = (found.double() - expected.double()).norm() / expected.double().norm()
            assert off < CLOSE[dtype], f"ours is off by {off:.1e}"
        for _ in range(ROUNDS):
            times["product"].append(seconds(product))
            times["ours"].append(seconds(ours))
            times["product"].append(seconds(product))
            times["plain"].append(seconds(plain))
        benchmark.pedantic(ours, rounds=1)
    median = {name: statistics.median(values) for name, values in times.items()}
    speed, peak = work / median["ours"], cube / median["product"]
    print(  # noqa: T201
        f"\n  ours {median['ours']:.2f} s, plain {median['plain']:.2f} s, "
        f"ratio {median['plain'] / median['ours']:.2f}; {speed / 1e9:.0f} GFLOP/s, "
        f"{speed / peak:.0%} of the matrix product's {peak / 1e9:.0f}"
    )


def drawn(model: nn.Module, dtype: torch.dtype) -> Any:
    """The model with weights none of which is zero, its trunk in `dtype`."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.02)
    cast_trunk(model, dtype)
    return model.to(DEVICE).eval().requires_grad_(False)


def shell(side: int, radius: float) -> Coordinates:
    """The voxels that a sphere's surface crosses, as many as a real object of that size has."""
    axis = torch.arange(side) + 0.5 - side / 2
    distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    xyz = ((distance - radius * side).abs() < 1.0).nonzero()
    return Coordinates(F.pad(xyz, (1, 0)).int().to(DEVICE))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention as the formula says: the whole matrix of scores."""
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    score = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        score = score.masked_fill(~mask, -math.inf)
    return (score.softmax(dim=-1) @ v).transpose(-3, -2)


@pytest.fixture
def plain_attention(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Runs a call with `softmax_attention` in place of the fused one."""

    def run(call: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr("modalign_plugins.generators.trellis.attention.attend", softmax_attention)
            return call()

    return run


@pytest.mark.parametrize("precision", DTYPES)
def test_structure_flow(benchmark: Any, precision: str, plain_attention: Any) -> None:
    """A guided call of 2 of 24 blocks, against two calls that read the condition each time."""
    dtype = DTYPES[precision]
    model = drawn(
        SparseStructureFlowModel(resolution=16, patch_size=1, num_blocks=2, **FLOW), dtype
    )
    x, t = torch.randn(1, 8, 16, 16, 16, device=DEVICE), torch.tensor([500.0], device=DEVICE)
    condition = torch.randn(1, TOKENS, 1024, device=DEVICE)
    with torch.no_grad():
        context = model.read(condition)
    both, times = x.repeat(2, 1, 1, 1, 1), t.repeat(2)

    def plain() -> Tensor:
        return torch.cat([model(x, t, c) for c in (condition, torch.zeros_like(condition))])

    compare(benchmark, lambda: model(both, times, context), lambda: plain_attention(plain), dtype)


@pytest.mark.parametrize("precision", DTYPES)
def test_structure_decoder(benchmark: Any, precision: str) -> None:
    """The whole decoder at half its resolution; plain lays channels out as torch does."""
    dtype = DTYPES[precision]
    model = drawn(
        SparseStructureDecoder(
            out_channels=1, latent_channels=8, num_res_blocks=2, num_res_blocks_middle=2,
            channels=[512, 128, 32],
        ),
        dtype,
    )  # fmt: skip
    x = torch.randn(1, 8, 8, 8, 8, device=DEVICE)

    def plain() -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "modalign_plugins.generators.trellis.structure_vae.LAYOUT",
                torch.contiguous_format,
            )
            return model(x)

    compare(benchmark, lambda: model(x), plain, dtype)


@pytest.mark.parametrize("precision", DTYPES)
def test_latent_flow(benchmark: Any, precision: str, plain_attention: Any) -> None:
    """A guided call of 2 of 24 blocks at 9,400 voxels; plain builds its tables every time."""
    dtype = DTYPES[precision]
    model = drawn(
        SLatFlowModel(
            resolution=64, patch_size=2, num_io_res_blocks=2, io_block_channels=[128],
            num_blocks=2, **FLOW,
        ),
        dtype,
    )  # fmt: skip
    at = shell(64, 0.3)
    feats, t = torch.randn(len(at), 8, device=DEVICE), torch.tensor([500.0], device=DEVICE)
    condition = torch.randn(1, TOKENS, 1024, device=DEVICE)
    with torch.no_grad():
        context = model.read(condition)
    twice = SparseTensor(at.repeated(2), feats.repeat(2, 1))

    def plain() -> Tensor:
        made = (
            model(SparseTensor(Coordinates(at.coords), feats), t, tokens).feats
            for tokens in (condition, torch.zeros_like(condition))
        )
        return torch.cat(list(made))

    compare(
        benchmark,
        lambda: model(twice, t.repeat(2), context).feats,
        lambda: plain_attention(plain),
        dtype,
    )


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("channels", [128, 1024])
def test_sparse_convolution_against_a_matrix_product(
    benchmark: Any, channels: int, precision: str
) -> None:
    """27 taps at 9,400 voxels, or 2,400; plain is ONE matrix product of as many operations."""
    dtype = DTYPES[precision]
    at = shell(64, 0.3) if channels == 128 else shell(32, 0.3)
    conv = drawn(SparseConv3d(channels, channels), torch.float32).to(dtype)
    x = SparseTensor(at, torch.randn(len(at), channels, device=DEVICE).to(dtype))
    product = gemm(len(at), 27 * channels, channels, dtype)
    work = 2 * len(at) * 27 * channels * channels
    compare(benchmark, lambda: conv(x).feats, product, dtype, work=work)


@pytest.mark.parametrize("precision", DTYPES)
def test_mesh_decoder(benchmark: Any, precision: str, plain_attention: Any) -> None:
    """2 of 12 blocks and both subdivisions at 2,400 voxels; plain convolves the children.

    Plain convolutions of subdivided voxels gather all 27 neighbours of every child.
    """
    dtype = DTYPES[precision]
    model = drawn(
        SLatMeshDecoder(
            resolution=64, model_channels=768, latent_channels=8, num_blocks=2, num_heads=12
        ),
        dtype,
    )
    at = shell(32, 0.3)
    feats = torch.randn(len(at), 8, device=DEVICE)
    x = SparseTensor(at, feats)

    def plain() -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SparseConv3d, "on_children", lambda conv, x: conv(subdivided(x)))
            return model(SparseTensor(Coordinates(at.coords), feats)).feats

    def subdivided(x: SparseTensor) -> SparseTensor:
        rows = x.feats.repeat_interleave(8, dim=0)
        return SparseTensor(Coordinates(x.at.subdivided.coords), rows)

    compare(benchmark, lambda: model(x).feats, lambda: plain_attention(plain), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("steps", [12, 25])
def test_seconds_per_asset(steps: int, precision: str, compiled: bool) -> None:
    """The whole of image-large with random weights on a GPU, at 9,300 voxels."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    spec = installed().get("generators", "trellis-image-large")
    trellis: Any = spec.build(weights="random", device="cuda", dtype=dtype)
    if compiled:
        compile_blocks(trellis)
    made(trellis, shell(64, 0.3), steps=steps)
    best = min(
        (made(trellis, shell(64, 0.3), steps=steps) for _ in range(3)), key=lambda a: a.total
    )
    stages = ", ".join(f"{name} {value:.2f}" for name, value in best.seconds.items())
    print(f"\n  {best.total:.2f} s ({stages}), peak {best.memory:.1f} GB")  # noqa: T201


def resident(field: str) -> float:
    """GB of this process: "VmRSS" now, "VmHWM" at most since the peak was last forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e6


def peak_beyond(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the GB by which the process grew meanwhile at most."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = resident("VmRSS")
    return run(), resident("VmHWM") - before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the peak")
def test_memory_of_decoding_a_mesh() -> None:
    """The largest part of the default run: 9,300 voxels to a mesh of a 256^3 grid, in float32."""
    model = drawn(
        SLatMeshDecoder(
            resolution=64, model_channels=768, latent_channels=8, num_blocks=1, num_heads=12
        ),
        torch.float32,
    )
    x = SparseTensor(shell(64, 0.3), torch.randn(len(shell(64, 0.3)), 8, device=DEVICE))
    with torch.no_grad():
        raw, decoding = peak_beyond(lambda: model(x))
    centre = (raw.at.coords[:, 1:].float() + 0.5) / 256 - 0.5
    raw.feats[:, :8] = (centre.norm(dim=1) - 0.3)[:, None]  # a ball, so that there is a surface
    (surface,), extracting = peak_beyond(lambda: extract_surfaces(raw, 256))
    print(  # noqa: T201
        f"\n  decoder {decoding:.2f} GB, extraction of {len(surface.faces)} triangles "
        f"{extracting:.2f} GB beyond what was there"
    )


def test_surface_extraction(benchmark: Any) -> None:
    """A ball from 150,000 voxels of a 256^3 grid, against cubes and corners of the whole grid.

    Plain: only the step that finds the crossing cubes, on dense arrays of 257^3 distances, as the
    reference does; it is a part of the work, so the ratio is a lower bound.
    """
    at = shell(64, 0.3)
    fine = at.subdivided.subdivided
    centre = (fine.coords[:, 1:].float() + 0.5) / 256 - 0.5
    raw = torch.zeros(len(fine), MESH_CHANNELS, device=DEVICE)
    corner = torch.tensor(
        [(k & 1, k >> 1 & 1, k >> 2 & 1) for k in range(8)], device=DEVICE
    ) - 0.5  # fmt: skip
    raw[:, :8] = (centre[:, None] + corner / 256).norm(dim=-1) - 0.3
    raw = SparseTensor(fine, raw)

    def plain() -> Tensor:
        grid = torch.ones(257, 257, 257, device=DEVICE)
        x, y, z = fine.coords[:, 1:].long().unbind(1)
        for number, (dx, dy, dz) in enumerate((corner + 0.5).long().tolist()):
            grid[x + dx, y + dy, z + dz] = raw.feats[:, number]
        inside = (grid < 0).long()
        case = sum(
            inside[dx : 256 + dx, dy : 256 + dy, dz : 256 + dz] << number
            for number, (dx, dy, dz) in enumerate((corner + 0.5).long().tolist())
        )
        return ((case > 0) & (case < 255)).nonzero()

    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(ROUNDS):
        times["ours"].append(seconds(lambda: extract_surfaces(raw, 256)))
        times["plain"].append(seconds(plain))
    benchmark.pedantic(lambda: extract_surfaces(raw, 256), rounds=1)
    ours, dense = (statistics.median(values) for values in times.values())
    print(f"\n  ours {ours:.2f} s in all, plain {dense:.2f} s for its first step")  # noqa: T201
