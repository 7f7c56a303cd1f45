"""The generator's gate, on objects it never saw: both VAEs alone, then everything from real tokens.

Real tokens are the ceiling of all that follows: asked for are 90 % of families and main colours, by
the judge of the end-to-end suite. Usage: python examples/mini/gate_generator.py [--objects N]
"""

from __future__ import annotations

import argparse

import shapes
import torch
from cache import WORLD
from configs import STRUCTURE
from gates import report
from modalign_plugins.generators.trellis.flexicubes import (
    enclosed,
    extract_surfaces,
    grid_attributes,
)
from modalign_plugins.generators.trellis.generator import as_mesh
from modalign_plugins.generators.trellis.loader import load_model
from modalign_plugins.generators.trellis.slat_vae import SLatEncoder, SLatMeshDecoder
from modalign_plugins.generators.trellis.sparse import SparseTensor
from modalign_plugins.generators.trellis.structure_vae import (
    SparseStructureDecoder,
    SparseStructureEncoder,
)
from modalign_plugins.suites.judge import Judge
from PIL import Image
from publish import CKPTS
from rich.progress import track

import modalign


@torch.no_grad()
def main() -> None:
    """Print and record the gate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    structure = load_model(CKPTS / "ss_enc", SparseStructureEncoder)
    cells_of = load_model(CKPTS / "ss_dec", SparseStructureDecoder)
    encode = load_model(CKPTS / "slat_enc", SLatEncoder)
    decode = load_model(CKPTS / "slat_dec_mesh", SLatMeshDecoder)
    encoder = modalign.installed().get("encoders", "dinov2-mini-reg").build()
    generator = modalign.installed().get("generators", "trellis-mini").build()
    judge = Judge(WORLD)
    sums: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        sums.setdefault(name, []).append(float(value))

    def verdict(name: str, toy: shapes.ToyObject, mesh: modalign.Mesh) -> None:
        found = judge(mesh)
        add(f"{name}: family", found.family == toy.family)
        add(f"{name}: main colour", found.color == toy.color)
        if toy.second is not None:
            add(f"{name}: second colour", found.second == toy.second.color)

    for index in track(range(options.objects), "judging"):
        toy = WORLD.object(index, "val")
        true = torch.from_numpy(toy.surface_voxels(STRUCTURE))[None, None]
        logits = cells_of(structure(true.float())[0])
        add("structure VAE: IoU", ((logits > 0) & true).sum() / ((logits > 0) | true).sum())

        coords, features, sdf, color = shapes.batch([shapes.shape_of(toy)])
        voxels = SparseTensor.from_coords(coords, features)
        raw = decode(voxels.replace(encode(voxels)[0]))
        grid = grid_attributes(raw, shapes.CELLS)
        near = sdf.abs() < 1.5
        wrong = grid.color[near, :3] - shapes.COLOR_TABLE[color[near].long()]
        add("SLAT VAE: right side", ((grid.sdf < 0) == (sdf < 0)).float().mean())
        add("SLAT VAE: colour kept", 1 - wrong.abs().mean())
        (surface,) = extract_surfaces(raw, shapes.CELLS, enclosed(voxels.at, STRUCTURE))
        verdict("both VAEs", toy, as_mesh(surface))

        picture = Image.fromarray(WORLD.asset(index, "val").image)
        stream = encoder.encode(encoder.prepare([picture]))
        try:
            (mesh,) = generator.generate(stream, seed=index)
        except modalign.GenerationError:
            for part in ("family", "main colour", "second colour"):
                add(f"real tokens: {part}", 0.0)
            continue
        assert isinstance(mesh, modalign.Mesh)
        verdict("real tokens", toy, mesh)
    results = {name: sum(values) / len(values) for name, values in sums.items()}
    asked = {"structure VAE: IoU": 0.95}
    asked |= {f"real tokens: {part}": 0.9 for part in ("family", "main colour")}
    report("generator", results, asked)


if __name__ == "__main__":
    main()
