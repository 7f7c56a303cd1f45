"""Each way in which the Hub refuses has one line of its own."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from huggingface_hub import errors

from modalign.errors import OutputError, WeightsError
from modalign.hub import downloaded, upload

FILES = ["config.json", "model*.safetensors"]


def of(kind: type[Exception]) -> Exception:
    """An error of the Hub without the web response that its constructor asks for."""
    error = kind.__new__(kind)
    error.args = ("the Hub's own words\nover several lines",)
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (of(errors.GatedRepoError), "a/b, which is gated: ask for access .* `hf auth login`"),
        (of(errors.RevisionNotFoundError), "revision 'v9' of a/b, which has none of that name"),
        (of(errors.RepositoryNotFoundError), "'a/b', but the Hub knows no such repository"),
        (errors.HFValidationError("too many slashes"), "'a/b', but the Hub knows no such"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk has no space; free some"),
        (errors.LocalEntryNotFoundError("offline"), r"not on this machine .* \(LocalEntryNot"),
        (errors.OfflineModeIsEnabled("offline"), "run `hf download a/b --include"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_refusal_says_what_to_do_next(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(WeightsError, match=message) as caught:
        downloaded("some-encoder", "a/b", FILES, "v9")
    assert "'some-encoder'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_copy_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {}

    def fetch(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"needs model\*\.safetensors of a/b, which the copy at"):
        downloaded("some-encoder", "a/b", FILES)
    (tmp_path / "model-1.safetensors").write_text("")
    assert downloaded("some-encoder", "a/b", FILES, "v1") == tmp_path
    assert asked == {"repository": "a/b", "allow_patterns": FILES, "revision": "v1"}


def test_a_push_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Api:
        def __init__(self, token: str | None) -> None:
            self.token = token

        def create_repo(self, *arguments: object, **options: object) -> None:
            raise of(errors.RepositoryNotFoundError)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(OutputError, match="cannot push to 'a/b': the Hub's own words; is there a"):
        upload(tmp_path, "a/b", private=True, token=None, message="Add weights")
