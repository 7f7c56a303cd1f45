"""Meshes from sentences with the Python API, and the tokens that they are made from."""

from pathlib import Path

import modalign

PROMPTS = ["a red mug with a blue handle", "a green chair", "a yellow car"]


def main(folder: Path = Path("runs/generate")) -> None:
    """Write a mesh and a picture per prompt into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = modalign.build("gap3d-mini")
    for number, prompt in enumerate(PROMPTS):
        (asset,) = pipeline.generate(prompt, seed=0)
        asset.save(folder / f"{number}.glb")
        asset.preview(folder / f"{number}.png")

    stream = pipeline.align(PROMPTS, seed=0)
    for name, tokens in stream.items():
        assert tokens.shape[0] == len(PROMPTS), name


if __name__ == "__main__":
    main()
