"""Weights from the Hub and to it, and one clear line for each way in which that fails."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from modalign.errors import OutputError, WeightsError


def downloaded(
    owner: str, repository: str, files: Sequence[str], revision: str | None = None
) -> Path:
    """The local folder of a Hub repository's `files` (glob patterns), fetched if need be.

    `owner` is what needs them, for messages; `revision` a branch, tag or commit.

    Raises:
        WeightsError: they are not here and cannot be fetched; names repository, files and remedy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = " ".join(f'--include "{pattern}"' for pattern in files)
    remedy = (
        f"run `hf download {repository} {patterns}` where there is a network, "
        "or pass weights=<folder that holds these files>"
    )
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(files), revision=revision))
    except GatedRepoError as error:
        raise WeightsError(
            f"{owner!r} needs {repository}, which is gated: ask for access on its page on the Hub, "
            "log in with `hf auth login`, and try again"
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsError(
            f"{owner!r} needs revision {revision!r} of {repository}, which has none of that name; "
            "give a branch, tag or commit that its page on the Hub lists"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise WeightsError(
            f"{owner!r} needs {repository!r}, but the Hub knows no such repository, or it is "
            "private; check the name, or log in with `hf auth login`"
        ) from error
    except (OSError, HfHubHTTPError) as error:
        if error.errno == errno.ENOSPC:
            raise WeightsError(
                f"{owner!r} needs {', '.join(files)} of {repository}, for which the disk has no "
                "space; free some, or let HF_HOME name a folder on another disk"
            ) from error
        raise WeightsError(
            f"{owner!r} needs {', '.join(files)} of {repository}, which are not on this machine "
            f"and cannot be downloaded ({type(error).__name__}); {remedy}"
        ) from error
    missing = [pattern for pattern in files if not any(folder.glob(pattern))]
    if missing:
        raise WeightsError(
            f"{owner!r} needs {', '.join(missing)} of {repository}, "
            f"which the copy at {folder} lacks; {remedy}"
        )
    return folder


def upload(folder: Path, repository: str, *, private: bool, token: str | None, message: str) -> str:
    """Put the files of `folder` into a repository, made if need be; returns the commit's address.

    Raises:
        OutputError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OutputError(
            f"cannot push to {repository!r}: {first}; is there a network, and have you logged in "
            "with `hf auth login`?"
        ) from error
    return str(done.commit_url)
