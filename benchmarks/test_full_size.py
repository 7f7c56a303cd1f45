"""GAP3D's sizes with random weights: time beside a second implementation, and peak memory.

`pytest benchmarks/test_full_size.py -m slow`: a few minutes, 16 GB of memory, 6 GB of disk. Each
case runs in a process of its own, whose peak memory counts from just before what is measured; read
ratios inside a group. On a CUDA device sampling runs at full depth, in bfloat16.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

MEASURE = """
import gc, json, resource, sys, threading, time
import torch
torch.set_num_threads(2)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def measured(work):
    # Peak of resident memory above what was there before, sampled; and seconds.
    gc.collect()
    before, peak, done = resident(), [0], threading.Event()
    def watch():
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident())
    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return result, seconds, max(peak[0], resident()) - before
"""

SAVE = """
from modalign import installed
from modalign.checkpoint import save_checkpoint
from modalign.models.dit import TokenStreamDiT
path, dtype = sys.argv[1], getattr(torch, sys.argv[2])
recipe = installed().get("recipes", "gap3d")
stream = installed().get("encoders", recipe.encoder).stream
torch.set_default_dtype(dtype)
with torch.device("meta"):
    head = TokenStreamDiT(stream, recipe.head, 2048)
tensors = {f"head.{k}": torch.full(t.shape, 0.5) for k, t in head.state_dict().items()}
tensors["soft_tokens"] = torch.full((1, recipe.num_soft_tokens, 2048), 0.5)
save_checkpoint(path, tensors, recipe, stream)
print(json.dumps({"parameters": sum(t.numel() for t in tensors.values())}))
"""

LOAD = """
from modalign.checkpoint import load_checkpoint
path, dtype = sys.argv[1], getattr(torch, sys.argv[2])
loaded, seconds, peak = measured(lambda: load_checkpoint(path, dtype=dtype))
size = sum(t.numel() * t.element_size() for t in loaded.tensors.values())
print(json.dumps({"seconds": seconds, "peak / bytes": peak / size, "GB": size / 1e9}))
"""

READ = """
from dataclasses import replace
from modalign import Prompt
from modalign_plugins.vlms.qwen2_5_vl_sizes import QWEN_3B
from modalign_plugins.vlms.qwen_vl_loading import adapter_of
sizes = replace(
    QWEN_3B,
    text={**QWEN_3B.text, "num_hidden_layers": int(sys.argv[2])},
    vision={**QWEN_3B.vision, "depth": 1, "fullatt_block_indexes": [0]},  # no picture is read
)
dtype = getattr(torch, sys.argv[3])
adapter = adapter_of(sizes, weights="random", dtype=dtype)
caption = "tall red mugs with blue handles, standing on a small round wooden table"
batch = adapter.prepare([Prompt(f"{k} {caption}") for k in range(4)])  # only the template is shared
soft = torch.randn(1, 64, adapter.hidden_dim, dtype=dtype, requires_grad=True)
def step():
    getattr(adapter, sys.argv[1])(batch, soft).hidden.square().mean().backward()
_, seconds, peak = measured(step)
told = {"seconds": seconds, "peak MB": peak / 1e6, "prompt tokens": batch["input_ids"].shape[1]}
print(json.dumps(told))
"""

SAMPLE = """
import warnings
warnings.simplefilter("ignore")
from modalign import DiTConfig, FlowConfig, SamplerConfig, TokenGroup, TokenStreamSpec
from modalign.models.dit import TokenStreamDiT
from modalign.models.rotary import rotary_table
from modalign.sampling import sample
who, cuda = sys.argv[1], torch.cuda.is_available()
device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
depth, steps = (24, 50) if cuda else (2, 3)
torch.set_default_dtype(dtype)
side, dim, width = 37, 1024, 1792  # the patches of GAP3D; a grid is all that the other network has
spec = TokenStreamSpec(
    space="benchmark", groups=(TokenGroup(name="patches", shape=(side, side), dim=dim),)
)
condition = torch.randn(1, 64, 2048, device=device)
flow, sampler = FlowConfig(), SamplerConfig(steps=steps, guidance=3.0)
if who == "modalign":
    config = DiTConfig(hidden_size=width, depth=depth, num_heads=28)
    with torch.device(device):
        head = TokenStreamDiT(spec, config, 2048, project_condition=False).eval()
else:
    from diffusers import LuminaNextDiT2DModel
    with torch.device(device):
        theirs = LuminaNextDiT2DModel(
            sample_size=side, patch_size=1, in_channels=dim, hidden_size=width, num_layers=depth,
            num_attention_heads=28, num_kv_heads=28, multiple_of=256, learn_sigma=False,
            qk_norm=True, cross_attention_dim=2048,
        ).eval()
    table = rotary_table(spec, width // 28).view(side, side, -1, 2).float()
    # It reads a table that begins elsewhere, and is larger than the grid.
    turned = torch.nn.functional.pad(table, (0, 0, 0, 0, 0, 1, 0, 1)).to(device)
    turned = torch.view_as_complex(turned.contiguous())
    mask = torch.ones(2, 64, dtype=torch.long, device=device)
    def head(x, t, c):
        grid = x["patches"].transpose(1, 2).unflatten(2, (side, side))
        clock = 1000 * (1 - t).to(dtype)
        out = theirs(
            grid, clock, c, mask[: len(c)], image_rotary_emb=turned, cross_attention_kwargs={},
            return_dict=False,
        )[0]
        return {"patches": -out.flatten(2).transpose(1, 2)}
def run():
    with torch.inference_mode():
        draw = [torch.Generator().manual_seed(0)]
        found = sample(head, spec, condition, flow=flow, sampler=sampler, generators=draw)
    if cuda:
        torch.cuda.synchronize()
    return found
run() if cuda else None
_, seconds, peak = measured(run)
print(json.dumps({"seconds": seconds, "device": device, "blocks": depth, "steps": steps}))
"""


def alone(code: str, *arguments: str) -> dict[str, Any]:
    """What a process of its own says of itself."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def measure(benchmark: Any, code: str, *arguments: str) -> dict[str, Any]:
    told = benchmark.pedantic(alone, args=(code, *arguments), rounds=1)
    benchmark.extra_info.update(told)
    print(f"\n{benchmark.name}: {told}")  # noqa: T201
    return dict(told)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GAP3D's head and soft tokens in one bfloat16 file."""
    path = tmp_path_factory.mktemp("full") / "gap3d.safetensors"
    assert alone(SAVE, str(path), "bfloat16")["parameters"] == 1_363_318_176
    return path


@pytest.mark.benchmark(group="loading GAP3D's aligner")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_the_memory_of_the_tensors(
    benchmark: Any, checkpoint: Path, dtype: str
) -> None:
    assert measure(benchmark, LOAD, str(checkpoint), dtype)["peak / bytes"] <= 1.15


@pytest.mark.benchmark(group="soft tokens behind 4 prompts, Qwen2.5-VL-3B's language model")
@pytest.mark.parametrize("path", ["read", "read_plain"])
def test_prefix_without_autograd_against_plain(benchmark: Any, path: str) -> None:
    measure(benchmark, READ, path, "36", "bfloat16")


@pytest.mark.benchmark(group="guided Euler steps at GAP3D's width")
@pytest.mark.parametrize("who", ["modalign", "diffusers"])
def test_sampling_against_diffusers(benchmark: Any, who: str) -> None:
    measure(benchmark, SAMPLE, who)
