"""The command as a person meets it: what it prints, and how it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modalign import (
    Registry,
    TokenStreamSpec,
    VLMOutput,
    __version__,
    cli,
    hookimpl,
    installed,
)
from modalign.conversion import empty_head
from modalign.models.released import to_released
from tests.modalign import stubs
from tests.modalign.training import runs

Outcome = tuple[int, str, str]
Command = Callable[..., Outcome]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Runs `modalign ARGUMENTS` in an empty folder; returns exit code, stdout and stderr."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["modalign", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as done:
            code = done.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Registry], list[str]]:
    """Puts a registry in place of what is installed; returns options that name stub weights."""

    def replace_installed(registry: Registry) -> list[str]:
        monkeypatch.setattr("modalign.registry.installed", lambda: registry)
        weights = stubs.checkpoint(tmp_path / "stub.safetensors", registry)
        return ["--recipe", "stub", "--checkpoint", str(weights)]

    return replace_installed


def refused(outcome: Outcome, *parts: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr with `parts`, no file left behind."""
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert list(Path.cwd().iterdir()) == []


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


@pytest.mark.parametrize(
    ("generator", "name", "parts"),
    [
        ({"produces": "picture"}, "mug.glb", ["a picture; use one of .png, .jpg, .jpeg, .webp"]),
        ({}, "mug.png", ["a mesh; use one of .glb, .ply, .obj"]),
        ({"produces": "splats"}, None, ["say where to write the splats: --output"]),
    ],
)
def test_an_extension_of_something_else_is_refused_before_anything_is_built(
    command: Command, use: Any, generator: dict[str, Any], name: str | None, parts: list[str]
) -> None:
    options = use(stubs.registry())
    known = stubs.registry(
        vlm={"build": stubs.refusing}, generator={**generator, "build": stubs.refusing}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modalign.registry.installed", lambda: known)
        output = () if name is None else ("-o", name)
        refused(command("generate", "a mug", *output, *options), *parts)


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


def test_a_recipe_without_a_generator_is_refused(command: Command, use: Any) -> None:
    options = use(stubs.registry())
    known = stubs.registry(stubs.RECIPE.derive(generator=None), vlm={"build": stubs.refusing})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modalign.registry.installed", lambda: known)
        refused(command("generate", "a mug", *options), "recipe 'stub' has no generator")


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


def test_names_that_are_not_there_offer_the_closest(command: Command) -> None:
    refused(
        command("generate", "a mug", "--recipe", "gap3d-mni"),
        "unknown recipe 'gap3d-mni'. Did you mean 'gap3d-mini'",
    )
    refused(command("info", "dinov2-mini"), "nothing is called", "Did you mean 'dinov2-mini-reg'")
    refused(command("plugin", "check", "trelis-mini"), "Did you mean 'trellis-mini'")


def test_a_recipe_whose_parts_are_in_other_spaces_is_refused(command: Command, use: Any) -> None:
    options = use(stubs.registry())
    space = TokenStreamSpec(space="other/layernorm@28", groups=stubs.STREAM.groups)
    use_registry = stubs.registry(generator={"accepts": space, "build": stubs.refusing})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modalign.registry.installed", lambda: use_registry)
        outcome = command("generate", "a mug", *options)
    refused(outcome, "stub/layernorm@28", "other/layernorm@28", "different networks")


@pytest.mark.parametrize("prompt", ["", "   \n"])
def test_an_empty_prompt_is_refused(command: Command, prompt: str) -> None:
    refused(command("generate", prompt), "the prompt is empty; describe what to make")


def test_no_prompt_is_refused(command: Command) -> None:
    refused(command("generate"), "the prompt is empty; describe what to make")


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


def test_an_overlong_prompt_is_refused_with_the_words_that_are_too_much(
    command: Command, use: Any
) -> None:
    """By the real adapter, whose limit counts the template's tokens too."""
    spec = installed().get("vlms", "qwen2.5-vl-mini")
    random = {"build": lambda **options: spec.build(**{**options, "weights": "random"})}
    options = use(stubs.registry(vlm={**random, "hidden_dim": spec.hidden_dim}))
    refused(
        command("generate", "a red mug " * 100 + "with a blue handle", *options),
        "more than the",
        "shorten it by its end, from '",
    )


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        ("mug.stl", ["'mug.stl': unknown extension '.stl'", "use one of .glb, .ply, .obj"]),
        ("mug", ["unknown extension ''"]),
        ("missing/mug.glb", ["folder 'missing' does not exist; create it"]),
        ("/dev/null/mug.glb", ["cannot write"]),
        ("/proc/mug.glb", ["cannot write into '/proc'"]),
    ],
)
def test_unusable_outputs_are_refused_before_anything_is_loaded(
    command: Command, output: str, parts: list[str]
) -> None:
    refused(command("generate", "a mug", "--output", output), *parts)


def test_a_folder_is_no_output(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "mug.glb"
    folder.mkdir()
    refused(command("generate", "a mug", "-o", str(folder)), "it is a folder")


def test_a_preview_never_takes_the_place_of_a_picture(command: Command, tmp_path: Path) -> None:
    picture = tmp_path / "mug.png"
    picture.write_bytes(b"a photograph")
    refused(command("generate", "a mug", "-o", str(tmp_path / "mug.glb")), "not a preview")
    assert picture.read_bytes() == b"a photograph"


def test_a_full_disk_leaves_nothing_half_written(
    command: Command, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = use(stubs.registry())

    def full(self: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modalign.assets.Mesh.preview", full)
    refused(command("generate", "a mug", *options), "cannot write output.glb", "No space left")


def test_weights_that_are_missing_or_damaged_are_refused(
    command: Command, use: Any, tmp_path: Path
) -> None:
    options = use(stubs.registry())
    path = tmp_path / "stub.safetensors"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for content, complaint in (
        (whole[: len(whole) // 2], "truncated, corrupted or no safetensors"),
        (bytes(flipped), "is corrupted: wrong checksum of"),
        (b"not a checkpoint", "truncated, corrupted or no safetensors"),
        (b"", "truncated, corrupted or no safetensors"),
    ):
        path.write_bytes(content)
        refused(command("generate", "a mug", *options), str(path), complaint)
    path.unlink()
    refused(command("generate", "a mug", *options), f"no checkpoint at {path}")
    path.write_bytes(whole)
    tensors = load_file(path)
    save_file(tensors, path)  # without the header that says what it is
    refused(command("generate", "a mug", *options), "is not a checkpoint of modalign")


def test_numbers_that_are_not_finite_name_their_stage(command: Command, use: Any) -> None:
    class Broken(stubs.VLM):
        def read(self, batch: Any, soft_tokens: Any) -> VLMOutput:
            return VLMOutput(soft_tokens * torch.inf)

    options = use(stubs.registry(vlm={"build": stubs.giving(Broken())}))
    refused(command("generate", "a mug", *options), "stage 'vision-language model'", "'hidden'")


def test_an_empty_sparse_structure_is_refused(command: Command, use: Any) -> None:
    """By the real generator: its decoder is made to say that no voxel is occupied."""
    spec = installed().get("generators", "trellis-mini")
    encoder = installed().get("encoders", "dinov2-mini-reg")

    def barren(**options: Any) -> Any:
        generator = spec.build(**{**options, "weights": "random"})
        last = [m for m in generator.models.structure_decoder.modules() if hasattr(m, "bias")][-1]
        torch.nn.init.constant_(last.bias, -1e4)
        return generator

    recipe = stubs.RECIPE.derive(
        objective={"options": {"weights": {"cls": 0.3, "registers": 0.3, "patches": 0.4}}}
    )
    options = use(
        stubs.registry(
            recipe,
            encoder={"stream": encoder.stream},
            generator={"accepts": spec.accepts, "build": barren},
        )
    )
    refused(command("generate", "a mug", *options), "stage 'sparse structure' found no occupied")


def test_an_interrupt_exits_with_130_and_no_traceback(
    command: Command, use: Any, tmp_path: Path
) -> None:
    class Slow(stubs.Generator):
        def generate(self, *arguments: Any, **options: Any) -> Any:
            raise KeyboardInterrupt

    options = use(stubs.registry(generator={"build": stubs.giving(Slow())}))
    code, out, err = command("generate", "a mug", *options)
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("generat", "a mug"),
        ("generate", "a mug", "--sed", "1"),
        ("generate", "a mug", "--seed", "-1"),
        ("generate", "a mug", "--seed", "x"),
        ("generate", "a mug", "--steps", "0"),
        ("generate", "a mug", "--num-samples", "65"),
    ],
)
def test_a_wrong_call_exits_with_2(command: Command, arguments: tuple[str, ...]) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cuda:x"])
def test_a_device_that_is_not_there_is_refused(command: Command, device: str) -> None:
    refused(command("generate", "a mug", "--device", device), repr(device), "use one of: cpu")


def test_list_shows_every_registered_name(command: Command) -> None:
    code, out, _ = command("list")
    assert code == 0
    for kind, entries in vars(installed().catalogue).items():
        assert all(name in out for name in entries), kind


def test_list_names_plugins_that_failed_or_clash(command: Command, use: Any) -> None:
    class Clash:
        @hookimpl
        def modalign_vlms(self) -> list[Any]:
            return [replace(stubs.registry().get("vlms", "stub-vlm"), summary="another")]

    class Wrong:
        @hookimpl
        def modalign_datasets(self) -> list[Any]:
            return ["coco"]

    known = stubs.registry(more=[Wrong()])
    use(known)
    _, out, _ = command("list")
    assert "plugin Wrong failed to load: TypeError: modalign_datasets must return" in out
    clashing = stubs.registry(more=[Clash()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modalign.registry.installed", lambda: clashing)
        _, out, _ = command("list")
    assert "vlm stub-vlm is claimed by stubs and Clash; neither is used" in out


def test_info_shows_a_recipe_with_its_parts(command: Command) -> None:
    code, out, _ = command("info", "gap3d")
    assert code == 0
    for part in (
        "recipe gap3d",
        "flow-matching (weights cls 0.3, registers 0.3, patches 0.4)",
        "dinov2-vitl14-reg/layernorm@518: cls 1 of 1024, registers 4 of 1024, patches 37x37",
        "generator trellis-image-large",
    ):
        assert part in out
    assert re.search(r"^license +MIT", out, flags=re.MULTILINE)
    assert "<function" not in out


def test_info_shows_a_licence_that_forbids_commerce(command: Command) -> None:
    _, out, _ = command("info", "flux-redux")
    assert re.search(r"^license +FLUX\.1 \[dev\] Non-Commercial License", out, flags=re.MULTILINE)
    assert "NON-COMMERCIAL" in command("list")[1]


def test_info_shows_the_contract_of_a_pair(command: Command) -> None:
    code, out, _ = command("info", "dinov2-vitl14-reg", "trellis-image-large")
    assert code == 0
    for part in ("works", "the same space", "518 px", "zeros", "MIT", "Apache-2.0"):
        assert part in out
    _, out, _ = command("info", "dinov2-mini-reg", "trellis-image-large")
    assert "refused" in out
    assert "different networks" in out
    refused(command("info", "gap3d", "trellis-mini"), "unknown encoder 'gap3d'")


def test_list_shows_all_pairs_as_markdown(command: Command) -> None:
    code, out, _ = command("list", "--pairs")
    assert code == 0
    assert "| `dinov2-vitl14-reg` |" in out
    assert "Each line holds for every language model: `qwen2.5-vl-3b`" in out


def test_info_says_which_parts_are_not_installed(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = stubs.registry(stubs.RECIPE.derive(encoder="absent-encoder"))
    monkeypatch.setattr("modalign.registry.installed", lambda: registry)
    code, out, _ = command("info", "stub")
    assert code == 0
    assert "'absent-encoder' is not installed" in out


def test_convert_goes_to_one_file_and_back(command: Command, use: Any, tmp_path: Path) -> None:
    """Soft tokens and every parameter of the stub network, under the names of the release."""
    use(stubs.registry())
    head = empty_head(stubs.STREAM, stubs.RECIPE.head, 8)
    draw = torch.Generator().manual_seed(0)
    network = {name: torch.randn(t.shape, generator=draw) for name, t in head.state_dict().items()}
    state = to_released(network, head, prefix="model.dit.model.")
    state["model.latent_queries"] = torch.randn(1, 3, 8, generator=draw)
    source, one, back = tmp_path / "source", tmp_path / "one.safetensors", tmp_path / "back"
    source.mkdir()
    save_file({k: t.contiguous() for k, t in state.items()}, source / "model.safetensors")
    code, out, _ = command("convert", source, one, "--recipe", "stub")
    assert code == 0
    assert f"kept: {len(state)} tensors" in out
    assert command("convert", one, back)[0] == 0
    written = load_file(back / "model.safetensors")
    assert written.keys() == state.keys()
    assert all(written[name].equal(state[name]) for name in state)
    refused(command("convert", source, tmp_path / "x.bin", "--recipe", "stub"), "a checkpoint ends")
    refused(command("convert", tmp_path / "no", one, "--recipe", "stub"), "no checkpoint at")
    refused(
        command("convert", source, one, "--recipe", "stub", "--frozen", source), "is one already"
    )


def test_plugin_check_runs_the_contract(command: Command, use: Any) -> None:
    use(stubs.registry())
    assert command("plugin", "check", "stub-encoder")[:2] == (
        0,
        "encoder stub-encoder: contract kept\n",
    )

    class Careless(stubs.Generator):
        def generate(self, stream: Any, **options: Any) -> Any:
            return super().generate(stream, seed=0)

    use(stubs.registry(generator={"build": stubs.giving(Careless())}))
    refused(
        command("plugin", "check", "stub-generator"),
        "generator 'stub-generator' breaks the contract: another seed gives the same asset",
    )
    refused(command("plugin", "check", "stub"), "'stub' is a recipe; only encoders")


def test_the_version_is_shown(command: Command) -> None:
    assert command("--version")[:2] == (0, f"modalign {__version__}\n")


def test_help_comes_at_once_and_exits_with_0() -> None:
    """Half a second of work at most: nobody waits, and no model library is imported."""
    code = (
        "import sys; sys.argv = ['modalign', '--help']; from modalign import cli\n"
        "try: cli.main()\n"
        "finally: print({'torch', 'numpy', 'PIL', 'pydantic'} & set(sys.modules))"
    )
    call = [sys.executable, "-c", code]
    taken = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run(call, capture_output=True, text=True, timeout=600, check=True)
        after = os.times()
        taken.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
    assert "generate" in done.stdout
    assert done.stdout.endswith("set()\n")
    assert min(taken) < 0.5


def test_the_command_refuses_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "modalign.cli", "generate", " "],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the prompt is empty; describe what to make\n"


@pytest.fixture
def trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modalign.registry.installed", runs.registry)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("trains")
def test_train_writes_a_model_that_generates(command: Command) -> None:
    options = ("--output", "run", "--steps", 3, "--data", "pairs?bad=0", "--log-every", 1)
    assert command("train", "stub", *options)[:2] == (0, "written to run/model.safetensors\n")
    again = command("train", "stub", *options)
    assert again[:2] == (0, "written to run/model.safetensors\n")  # nothing was left to do
    assert len(runs.rows(Path("run"))) == 3
    made = command("generate", "a mug", "--recipe", "stub", "--checkpoint", "run", "-o", "m.glb")
    assert made[0] == 0


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--data", "pears"], ("'pears'", "Did you mean 'pairs'?")),
        (["--data", "pairs:0"], ("mixing ratio 0",)),
        (["--data", "pairs?nonsense=1"], ("dataset 'pairs' has no option 'nonsense'",)),
        (["--from", "nowhere.safetensors"], ("no checkpoint at nowhere.safetensors",)),
        (["--set", "training.lr=fast"], ("training.lr", "valid number")),
        (["--shard", "3"], ("--shard 3 does not divide the 1 processes",)),
        (["--device", "abacus"], ("device 'abacus' is not available",)),
        (["--evaluate", "pears"], ("'pears'",)),
        (["--evaluate-pictures", "4"], ("say --evaluate NAME",)),
    ],
)
def test_train_refuses_what_cannot_be_trained(
    command: Command, arguments: list[str], parts: tuple[str, ...]
) -> None:
    refused(command("train", "stub", "--output", "run", *arguments), *parts)


@pytest.mark.usefixtures("trains")
def test_train_refuses_the_folder_of_another_run(command: Command) -> None:
    assert command("train", "stub", "--output", "run")[0] == 0
    code, out, err = command("train", "stub", "--output", "run", "--set", "training.lr=0.5")
    assert (code, out) == (2, "")
    assert err.startswith("error: run holds another run: training.lr is 0.01 there, 0.5 here;")


@pytest.mark.usefixtures("trains")
def test_train_refuses_a_recipe_without_data_or_end(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = runs.RECIPE.derive(training={"steps": None, "data": ()})
    monkeypatch.setattr("modalign.registry.installed", lambda: runs.registry(endless))
    refused(command("train", "stub", "--output", "run"), "names no data", "one of: holes, pairs")
    refused(command("train", "stub", "--output", "run", "--data", "pairs"), "--steps N")


def test_a_second_stage_asks_for_the_first(command: Command) -> None:
    refused(
        command("train", "gap3d-finetune", "--data", "toybox", "--steps", 1, "--output", "run"),
        "'gap3d-finetune' continues what 'gap3d' has trained",
        "--from FILE",
    )


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "modalign", "--version"], capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stdout) == (0, f"modalign {__version__}\n")
