"""Edit a mesh without training: other appearances, a region kept, two prompts mixed."""

from pathlib import Path

import modalign

MUG, OTHER = "a red mug with a blue handle", "a green mug with a yellow handle"


def main(folder: Path = Path("runs/edit")) -> None:
    """Write a picture per edit into `folder`."""
    from modalign_plugins.generators.trellis import box

    folder.mkdir(parents=True, exist_ok=True)
    pipeline = modalign.build("gap3d-mini")
    trellis = pipeline.parts.generator
    (mug,) = pipeline.generate(MUG, seed=0)
    red, green = (pipeline.parts.connect(pipeline.align(prompt, seed=0)) for prompt in (MUG, OTHER))
    mug.preview(folder / "mug.png")

    # The mug through both encoders and back: what every edit below starts from.
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


if __name__ == "__main__":
    main()
