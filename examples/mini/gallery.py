"""The picture the README opens with: prompts, and four views of what came out of each.

Usage: python examples/mini/gallery.py [--recipe gap3d-mini]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

import modalign

PROMPTS = (
    "a red mug with a blue handle",
    "a yellow chair with four brown legs",
    "a tall white rocket with orange fins",
    "a purple house with a green roof",
    "a cyan robot with a pink head",
    "a short brown car with black wheels",
    "a pink flower in a blue pot",
    "a green table with red legs",
)
VIEW = 160
LABEL = 28
DOCS = Path(__file__).parents[2] / "docs"


def panel(prompt: str, views: np.ndarray) -> Image.Image:
    """One prompt above its views (V, H, W, 3) side by side."""
    width = VIEW * len(views)
    picture = Image.new("RGB", (width, VIEW + LABEL), "white")
    picture.paste(Image.fromarray(np.concatenate(list(views), axis=1)), (0, LABEL))
    draw = ImageDraw.Draw(picture)
    draw.text((8, 6), f'"{prompt}"', fill="black", font=ImageFont.load_default(15))
    return picture


def main() -> None:
    """Write docs/gallery.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="gap3d-mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=DOCS / "gallery.png")
    options = parser.parse_args()
    pipeline = modalign.build(options.recipe)
    panels = []
    for prompt in track(PROMPTS, "generating"):
        (mesh,) = pipeline.generate(prompt, seed=options.seed)
        assert isinstance(mesh, modalign.Mesh)
        panels.append(panel(prompt, mesh.render(views=3, size=VIEW)))
    columns = 2
    width, height = panels[0].size
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (width * columns + 16, height * rows), "white")
    for k, picture in enumerate(panels):
        sheet.paste(picture, (k % columns * (width + 16), k // columns * height))
    options.output.parent.mkdir(exist_ok=True)
    sheet.save(options.output, optimize=True)


if __name__ == "__main__":
    main()
