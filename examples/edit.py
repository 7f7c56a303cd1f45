"""Edit without training: other appearances of a mesh, a region kept, a picture under a prompt."""

from pathlib import Path

from modalign_plugins.datasets.toybox import Toybox
from modalign_plugins.generators.trellis import box
from PIL import Image

import modalign

MUG, OTHER = "a red mug with a blue handle", "a green mug with a yellow handle"
MUG_ON_A_PICTURE = 9  # a brown one with a blue handle


def main(folder: Path = Path("runs/edit")) -> None:
    """Write a picture of four views per edit into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = modalign.build("gap3d-mini")
    trellis, encoder = pipeline.parts.generator, pipeline.parts.encoder
    (mug,) = pipeline.generate(MUG, seed=0)
    red = pipeline.parts.connect(pipeline.align(MUG, seed=0))
    green = pipeline.parts.connect(pipeline.align(OTHER, seed=0))
    mug.preview(folder / "mug.png")

    # The mug through the encoder and back: what the edits below start from.
    latent = trellis.encode(mug)
    (same,) = trellis.edit(green, latent, seed=0, strength=0)
    same.preview(folder / "encoded.png")

    # Its voxels, in the colours of the other prompt.
    (variant,) = trellis.variants(green, mug, seed=0)
    variant.preview(folder / "variant.png")

    # The lower half stays; the upper half becomes what the other prompt says.
    lower = box((-0.5, -0.5, -0.5), (0.5, 0.5, 0.0))
    (masked,) = trellis.edit(green, latent, seed=0, keep=lower)
    masked.preview(folder / "masked.png")

    for strength in (0.3, 0.6, 0.9):
        (edited,) = trellis.edit(green, latent, seed=0, strength=strength)
        edited.preview(folder / f"strength-{strength}.png")
    (mixed,) = trellis.generate_mixed([red, green], [0.5, 0.5], seed=0)
    mixed.preview(folder / "mixed.png")

    # A picture's own tokens, half of the way towards the prompt.
    picture = Image.fromarray(Toybox().asset(MUG_ON_A_PICTURE, "val").image)
    picture.save(folder / "picture.png")
    real = encoder.encode(encoder.prepare([picture]))
    tokens = pipeline.align(OTHER, seed=0, start=real, strength=0.5)
    (repainted,) = trellis.generate(pipeline.parts.connect(tokens), seed=0)
    repainted.preview(folder / "repainted.png")


if __name__ == "__main__":
    main()
