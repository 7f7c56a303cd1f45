"""How `modalign generate` refuses: one line, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modalign import (
    TokenStreamSpec,
    VLMOutput,
    installed,
)
from tests.modalign import stubs
from tests.modalign.cli.outcomes import Command, refused


def test_a_recipe_without_a_generator_is_refused(command: Command, use: Any) -> None:
    options = use(stubs.registry())
    known = stubs.registry(stubs.RECIPE.derive(generator=None), vlm={"build": stubs.refusing})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modalign.registry.installed", lambda: known)
        refused(command("generate", "a mug", *options), "recipe 'stub' has no generator")


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
    refused(
        command("generate", "a mug", "-o", str(tmp_path / "mug.glb")),
        "mug.png beside mug.glb: it exists",
    )
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
