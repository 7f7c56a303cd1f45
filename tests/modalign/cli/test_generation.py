"""`modalign generate`: what it writes, from a prompt or from a picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modalign import Gaussians
from modalign.assets import TexturedMesh
from tests.modalign import stubs
from tests.modalign.cli.outcomes import Command, refused


def test_generate_writes_an_asset_and_a_picture(command: Command, use: Any) -> None:
    options = use(stubs.registry())
    code, out, err = command("generate", "a mug", "--output", "mug.glb", *options)
    assert (code, out, err) == (0, "mug.glb  mug.png\n", "")
    assert Path("mug.glb").read_bytes().startswith(b"glTF")
    assert Path("mug.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(Path.cwd().iterdir())) == 2


PAINTER = {"build": stubs.giving(stubs.Painter()), "produces": "picture"}


@pytest.mark.parametrize("name", ["mug.png", "mug.jpg", "mug.jpeg", "mug.webp"])
def test_a_recipe_that_makes_pictures_writes_them_without_a_preview(
    command: Command, use: Any, name: str
) -> None:
    options = use(stubs.registry(generator=PAINTER))
    code, out, err = command("generate", "a mug", "-o", name, *options)
    assert (code, out, err) == (0, f"{name}\n", "")
    assert [path.name for path in Path.cwd().iterdir()] == [name]
    with Image.open(name) as image:
        assert image.size == (3, 2)


def test_the_default_name_is_of_what_the_recipe_makes(command: Command, use: Any) -> None:
    options = use(stubs.registry(generator=PAINTER))
    assert command("generate", "a mug", *options)[1] == "output.png\n"
    Path("output.png").unlink()  # it would be kept as a photograph, see below
    options = use(stubs.registry())
    assert command("generate", "a mug", *options)[1] == "output.glb  output.png\n"


@contextmanager
def nothing_built(generator: dict[str, Any]) -> Iterator[None]:
    """Within it, parts of this generator's sort are installed that must not be built."""
    known = stubs.registry(
        vlm={"build": stubs.refusing}, generator={**generator, "build": stubs.refusing}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modalign.registry.installed", lambda: known)
        yield


@pytest.mark.parametrize(
    ("generator", "name", "parts"),
    [
        ({"produces": "picture"}, "mug.glb", ["'picture'; use one of .png, .jpg, .jpeg, .webp"]),
        ({}, "mug.png", ["'mesh'; use one of .glb, .ply, .obj"]),
        ({"produces": "splats"}, None, ["say where to write the splats: --output"]),
    ],
)
def test_an_extension_of_something_else_is_refused_before_anything_is_built(
    command: Command, use: Any, generator: dict[str, Any], name: str | None, parts: list[str]
) -> None:
    options = use(stubs.registry())
    output = () if name is None else ("-o", name)
    with nothing_built(generator):
        refused(command("generate", "a mug", *output, *options), *parts)


class Sculptor(stubs.Generator):
    """The stub's mesh, or what is asked for in its place."""

    def generate(self, stream: Any, *, format: str = "mesh", **options: Any) -> list[Any]:
        made: list[Any] = super().generate(stream, **options)
        if format == "textured-mesh":
            picture = np.zeros((2, 2, 3), np.uint8)
            return [TexturedMesh(m.vertices, m.faces, np.zeros((4, 2)), picture) for m in made]
        if format == "gaussians":
            some = {"xyz": torch.zeros(1, 3), "features_dc": torch.zeros(1, 1, 3)}
            some |= {"opacity": torch.full((1, 1), 0.5), "scaling": torch.full((1, 3), 0.1)}
            return [Gaussians(**some, rotation=torch.eye(4)[:1]) for _ in made]
        return made


SCULPTOR = {
    "build": stubs.giving(Sculptor()),
    "formats": ("mesh", "textured-mesh", "gaussians"),
}


@pytest.mark.parametrize(
    ("format", "output", "written"),
    [
        ("mesh", None, ["output.glb", "output.png"]),
        ("gaussians", None, ["output.ply", "output.png"]),
        ("gaussians", "x.splat", ["x.splat", "x.png"]),
        ("textured-mesh", None, ["output.glb", "output.png"]),
        ("textured-mesh", "x.obj", ["x.obj", "x.png", "x.mtl", "x_texture.png"]),
    ],
)
def test_a_format_reaches_the_generator_and_names_the_files(
    command: Command, use: Any, format: str, output: str | None, written: list[str]
) -> None:
    options = use(stubs.registry(generator=SCULPTOR))
    named = () if output is None else ("-o", output)
    code, out, err = command("generate", "a mug", "--format", format, *named, *options)
    assert (code, out, err) == (0, "  ".join(written) + "\n", "")
    assert {path.name for path in Path.cwd().iterdir()} == set(written)
    start = Path(written[0]).read_bytes()[:200]
    assert (b"property float f_dc_0" in start) == (written[0] == "output.ply")


def test_a_picture_may_be_made_in_another_format(command: Command, use: Any, cut_out: Path) -> None:
    use(stubs.registry(generator=SCULPTOR))
    asked = ("generate", "--recipe", "stub", "--from-image", cut_out, "--format", "gaussians")
    assert command(*asked)[:2] == (0, "output.ply  output.png\n")


def test_the_only_format_may_be_named(command: Command, use: Any) -> None:
    """The stub takes no option `format`: it is not handed one."""
    options = use(stubs.registry())
    assert command("generate", "a mug", "--format", "mesh", *options)[0] == 0


@pytest.mark.parametrize(
    ("generator", "arguments", "parts"),
    [
        ({}, ["gaussians"], ["cannot make 'gaussians'", "Available: mesh."]),
        (SCULPTOR, ["gaussian"], ["Did you mean 'gaussians'?", "gaussians, mesh, textured-mesh"]),
        (SCULPTOR, ["gaussians", "-o", "x.glb"], ["'gaussians'; use one of .ply, .splat"]),
        (SCULPTOR, ["textured-mesh", "-o", "x.ply"], ["'textured-mesh'; use one of .glb, .obj"]),
    ],
)
def test_a_format_that_is_not_made_is_refused_before_anything_is_built(
    command: Command, use: Any, generator: Any, arguments: list[str], parts: list[str]
) -> None:
    options = use(stubs.registry())
    with nothing_built(generator):
        refused(command("generate", "a mug", "--format", *arguments, *options), *parts)


def test_an_objs_texture_never_takes_the_place_of_a_picture(
    command: Command, use: Any, tmp_path: Path
) -> None:
    options = use(stubs.registry(generator=SCULPTOR))
    photograph = tmp_path / "mug_texture.png"
    photograph.write_bytes(b"a photograph")
    asked = ("--format", "textured-mesh", "-o", tmp_path / "mug.obj")
    refused(command("generate", "a mug", *asked, *options), "mug_texture.png beside mug.obj")
    assert photograph.read_bytes() == b"a photograph"


def test_a_picture_never_takes_the_place_of_one_the_prompt_refers_to(
    command: Command, use: Any, tmp_path: Path
) -> None:
    options = use(stubs.registry(generator=PAINTER))
    photograph = tmp_path / "mug.png"
    Image.new("RGB", (16, 16)).save(photograph)
    before = photograph.read_bytes()
    asked = ("a mug", "--image", str(photograph), "-o", str(photograph))
    refused(command("generate", *asked, *options), "the prompt refers to the picture")
    assert photograph.read_bytes() == before


def test_the_same_seed_writes_the_same_bytes_and_says_what_it_replaced(
    command: Command, use: Any
) -> None:
    options = use(stubs.registry())
    command("generate", "a mug", "-o", "mug.glb", *options)
    first = Path("mug.glb").read_bytes()
    _, out, _ = command("generate", "a mug", "-o", "mug.glb", *options)
    assert out == "mug.glb  mug.png  (replaced)\n"
    assert Path("mug.glb").read_bytes() == first
    command("generate", "a mug", "-o", "mug.glb", "--seed", "1", *options)
    assert Path("mug.glb").read_bytes() != first


def test_several_samples_are_numbered(command: Command, use: Any) -> None:
    options = use(stubs.registry())
    _, out, _ = command("generate", "a mug", "-o", "mug.ply", "--num-samples", "2", *options)
    assert out == "mug-0.ply  mug-0.png\nmug-1.ply  mug-1.png\n"


@pytest.fixture
def cut_out(tmp_path: Path) -> Path:
    """A picture with transparency, outside the folder where the command runs."""
    picture = Image.new("RGBA", (40, 30), (200, 100, 50, 0))
    picture.paste((200, 100, 50, 255), (10, 5, 30, 25))
    picture.save(tmp_path / "cut-out.png")
    return tmp_path / "cut-out.png"


def test_a_picture_in_place_of_a_prompt_reaches_the_generator_whole(
    command: Command, use: Any, cut_out: Path
) -> None:
    """Its transparency is there when the generator crops it, and no language model is built."""
    seen = []

    def crop(picture: Image.Image) -> Image.Image:
        seen.append((picture.mode, picture.size))
        return picture.convert("RGB")

    known = stubs.registry(generator={"crop": crop}, vlm={"build": stubs.refusing})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modalign.registry.installed", lambda: known)
        asked = ("generate", "--recipe", "stub", "--from-image", cut_out, "-o", "x.ply")
        code, out, err = command(*asked, "--num-samples", "2")
    assert (code, out, err) == (0, "x-0.ply  x-0.png\nx-1.ply  x-1.png\n", "")
    assert seen == [("RGBA", (40, 30))] * 2
    assert Path("x-0.ply").read_bytes() != Path("x-1.ply").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a mug"], "a prompt"),
        (["--steps", "3", "--guidance", "0"], "--steps, --guidance"),
    ],
)
def test_what_belongs_to_a_prompt_is_refused_beside_a_picture(
    command: Command, cut_out: Path, arguments: list[str], named: str
) -> None:
    outcome = command("generate", *arguments, "--from-image", cut_out)
    refused(outcome, f"--from-image stands for a prompt; leave out {named}\n")


def test_an_animation_in_place_of_a_prompt_is_refused(command: Command, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (30, 30), (k * 90, 0, 0)) for k in range(3)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    outcome = command("generate", "--from-image", tmp_path / "x.gif")
    refused(outcome, "x.gif is animated (3 frames); give one frame of it")


def test_a_picture_with_nothing_in_it_is_refused(command: Command, tmp_path: Path) -> None:
    """By the real generator's crop."""
    Image.new("RGBA", (30, 30), (9, 9, 9, 0)).save(tmp_path / "nothing.png")
    outcome = command("generate", "--from-image", tmp_path / "nothing.png")
    refused(outcome, "no pixel of the picture is opaque")
