"""A saved pipeline comes back from a file, a folder or the Hub, and says what it is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import modalign
from modalign import BuildError, OutputError, Pipeline, WeightsError, build, from_pretrained
from modalign.fingerprint import fingerprint, same_weights
from tests.modalign import stubs


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """The stub pipeline with weights of its own, as if trained."""
    path = stubs.checkpoint(tmp_path / "trained.safetensors")
    return build("stub", weights=path, registry=stubs.registry())


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["extra"])


def same(one: Path, other: Path) -> bool:
    """Equal tensors and headers; the order of a header's entries is the library's own doing."""
    with safe_open(one, "pt") as left, safe_open(other, "pt") as right:
        return (
            left.metadata() == right.metadata()
            and set(left.keys()) == set(right.keys())
            and all(left.get_tensor(k).equal(right.get_tensor(k)) for k in set(left.keys()))
        )


@pytest.mark.parametrize("load", [from_pretrained, Pipeline.from_pretrained])
def test_a_folder_comes_back_as_the_same_pipeline(load, pipeline, tmp_path: Path) -> None:
    """The recipe comes from the file: it need not be registered."""
    folder = tmp_path / "saved"
    pipeline.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    parts_alone = stubs.registry(stubs.RECIPE.derive(name="another"))
    for source in (folder, str(folder), folder / "model.safetensors"):
        back = load(source, registry=parts_alone)
        assert back.recipe == pipeline.recipe
        own, again = pipeline.align("a mug", seed=2), back.align("a mug", seed=2)
        assert all(own[name].equal(again[name]) for name in own)


def test_a_file_says_all_that_its_user_has_to_know(pipeline, tmp_path: Path) -> None:
    registry = stubs.registry(
        vlm={"template": "<{prompt}>", "license": "MIT", "source": "lab/vlm"},
        encoder={"preprocessing": "28 px"},
    )
    pipeline = build("stub", weights=tmp_path / "trained.safetensors", registry=registry)
    pipeline.save(tmp_path / "x.safetensors", statistics={"cls": {"mean": 0.0, "deviation": 1.0}})
    said = header(tmp_path / "x.safetensors")
    assert said["parts"]["vlms"] == {"name": "stub-vlm", "source": "lab/vlm", "license": "MIT"}
    assert said["parts"]["generators"]["produces"] == "mesh"
    assert said["prompt_template"] == "<{prompt}>"
    assert said["preprocessing"] == "28 px"
    assert said["null_condition"] == "zeros"
    assert said["statistics"]["cls"] == {"mean": 0.0, "deviation": 1.0}
    assert said["fingerprint"] == fingerprint(stubs.Encoder())


def test_what_was_loaded_is_kept_when_it_is_saved_again(pipeline, tmp_path: Path) -> None:
    """Also tensors of frozen parts, which no parameter of the pipeline holds."""
    pipeline.frozen_tensors = {"frozen.token_rows": torch.ones(3, 8)}
    pipeline.save(tmp_path / "one.safetensors", training={"steps": 7})
    again = from_pretrained(tmp_path / "one.safetensors", registry=stubs.registry())
    again.save(tmp_path / "two.safetensors")
    assert header(tmp_path / "two.safetensors")["training"] == {"steps": 7}
    assert same(tmp_path / "one.safetensors", tmp_path / "two.safetensors")


def test_trained_tensors_are_stored_in_the_dtype_asked_for(pipeline, tmp_path: Path) -> None:
    """Those of frozen parts as they are; the pipeline itself does not change."""
    pipeline.frozen_tensors = {"frozen.token_rows": torch.ones(3, 8)}
    pipeline.save(tmp_path / "x.safetensors", dtype=torch.float16)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in set(file.keys())}
    assert kinds.pop("frozen.token_rows") == torch.float32
    assert set(kinds.values()) == {torch.float16}
    assert pipeline.soft_tokens.dtype == torch.float32


class OtherEncoder(stubs.Encoder):
    """The same layout and space, other weights."""

    def encode(self, batch):
        return super().encode(batch + 1)


def test_other_weights_of_the_encoder_are_refused_at_loading_or_when_it_is_used(
    pipeline, tmp_path
) -> None:
    path = tmp_path / "x.safetensors"
    pipeline.save(path)
    others = stubs.registry(encoder={"build": stubs.giving(OtherEncoder())})
    wrong = r"x\.safetensors was trained on other weights of 'stub"
    with pytest.raises(WeightsError, match=wrong + ".*; verify=False loads"):
        from_pretrained(path, registry=others)
    loaded = from_pretrained(path, verify=False, registry=others)
    with pytest.raises(WeightsError, match=wrong):
        _ = loaded.parts.encoder
    assert from_pretrained(path, registry=stubs.registry()).parts.encoder is not None


def test_precision_is_no_difference_and_other_weights_are() -> None:
    own = fingerprint(stubs.Encoder())
    rounded = {
        name: torch.tensor(values).bfloat16().float().tolist() for name, values in own.items()
    }
    assert rounded != own
    assert same_weights(own, rounded)
    assert not same_weights(own, fingerprint(OtherEncoder()))
    assert not same_weights(own, {"cls": own["cls"]})
    broken = {name: [math.nan] * len(values) for name, values in own.items()}
    assert not same_weights(own, broken)


def test_random_parts_leave_no_fingerprint(tmp_path: Path) -> None:
    pipeline = build("stub", weights="random", registry=stubs.registry())
    pipeline.save(tmp_path / "x.safetensors")
    assert "fingerprint" not in header(tmp_path / "x.safetensors")


def test_without_the_encoder_s_weights_a_file_is_saved_all_the_same(tmp_path: Path) -> None:
    def absent(**options):
        raise WeightsError("not on this machine")

    path = stubs.checkpoint(tmp_path / "trained.safetensors")
    pipeline = build("stub", weights=path, registry=stubs.registry(encoder={"build": absent}))
    pipeline.save(tmp_path / "x.safetensors")
    assert "fingerprint" not in header(tmp_path / "x.safetensors")


def test_a_pipeline_that_is_loaded_stage_by_stage_is_saved_whole(pipeline, tmp_path) -> None:
    staged = build(
        "stub", weights=tmp_path / "trained.safetensors", stagewise=True, registry=stubs.registry()
    )
    staged.save(tmp_path / "one.safetensors")
    pipeline.save(tmp_path / "two.safetensors")
    assert same(tmp_path / "one.safetensors", tmp_path / "two.safetensors")


def test_the_card_names_parts_sources_and_licences(pipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved", training={"steps": 7})
    card = (tmp_path / "saved" / "README.md").read_text()
    for said in (
        "library_name: modalign",
        "pipeline_tag: text-to-3d",
        "# stub",
        "| vlm | `stub-vlm` |",
        "| generator | `stub-generator` |",
        "tokens: `stub/layernorm@28`: cls 1 of 4, patches 2x3 of 4",
        "training: steps 7",
    ):
        assert said in card
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert modalign.Recipe.model_validate(config["recipe"]) == pipeline.recipe


def test_a_card_that_somebody_wrote_is_kept(pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    pipeline.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"


def test_a_name_on_the_hub_is_fetched_at_its_revision(pipeline, tmp_path, monkeypatch) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    asked = {}

    def fetch(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path / "saved")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    back = from_pretrained("lab/stub", revision="v2", registry=stubs.registry())
    assert back.recipe == pipeline.recipe
    assert asked == {
        "repository": "lab/stub",
        "revision": "v2",
        "allow_patterns": ["model.safetensors"],
    }


def test_a_push_uploads_the_whole_folder(pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None) -> None:
            seen["token"] = token

        def create_repo(self, name: str, **options: Any) -> Any:
            seen["made"] = (name, options)
            return type("Made", (), {"repo_id": name})

        def upload_folder(self, *, folder_path: Path, **options: Any) -> Any:
            seen["files"] = sorted(path.name for path in folder_path.iterdir())
            return type("Done", (), {"commit_url": "address"})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert pipeline.push_to_hub("lab/stub", private=True, token="t") == "address"
    assert seen == {
        "token": "t",
        "made": ("lab/stub", {"private": True, "exist_ok": True}),
        "files": ["README.md", "config.json", "model.safetensors"],
    }


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "some/file.safetensors"])
def test_what_is_neither_here_nor_a_repository_is_refused(source: str) -> None:
    with pytest.raises(WeightsError, match="no checkpoint at .*; give a .safetensors file, a fold"):
        from_pretrained(source, registry=stubs.registry())


def test_a_folder_without_weights_and_a_revision_of_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint at .*model\.safetensors"):
        from_pretrained(tmp_path, registry=stubs.registry())
    with pytest.raises(WeightsError, match="revision 'v1' was given, but .* is no repository"):
        from_pretrained(tmp_path, revision="v1", registry=stubs.registry())


def test_parts_that_are_not_installed_are_named(pipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    with pytest.raises(BuildError, match="unknown encoder 'stub-encoder'"):
        from_pretrained(tmp_path / "saved", registry=stubs.registry(encoder={"name": "renamed"}))


def test_a_folder_that_cannot_be_written_is_named(pipeline, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(OutputError, match="cannot write checkpoint .*file/model"):
        pipeline.save_pretrained(blocked)
