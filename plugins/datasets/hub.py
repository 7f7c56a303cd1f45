"""Data sets of the Hugging Face Hub, and local parquet and arrow files, through `datasets`."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modalign import DatasetSpec, Example, ModalignError, Prompt, SampleError, hookimpl
from modalign.data import Background, drawn, picture
from modalign.errors import did_you_mean


class Hub:
    """The rows of one split of a data set that `datasets` can load, by index.

    Args:
        repository: on the Hub, such as "owner/name"; fetched whole, once.
        path: instead of it, local `.parquet` or `.arrow` files or patterns, or a folder of
            `save_to_disk`; no network is needed.
        split: which split of a repository.
        config: which configuration of a repository.
        revision: its branch, tag or commit.
        image: the column of pictures.
        caption: the column of captions: a text, or a list of which one is drawn per epoch.
        seed: of the draws.
        background: what transparent pictures show.
    """

    def __init__(
        self,
        repository: str | None = None,
        *,
        path: str | Sequence[str] | None = None,
        split: str = "train",
        config: str | None = None,
        revision: str | None = None,
        image: str = "image",
        caption: str = "text",
        seed: int = 0,
        background: Background = "black",
    ) -> None:
        """Loads the table; pictures stay encoded until they are asked for.

        Raises:
            ValueError: neither repository nor path is given, or a column is not there.
            ModalignError: the data cannot be had, or `datasets` is not installed.
        """
        if (repository is None) == (path is None):
            raise ValueError("give either repository=owner/name or path=FILES")
        self.name = repository or Path(path if isinstance(path, str) else path[0]).name  # type: ignore[index]
        self.split, self.seed, self.background = split, seed, background
        self.image, self.caption = image, caption
        table = _loaded(repository, path, split, config, revision)
        for column in (image, caption):
            if column not in table.column_names:
                raise ValueError(f"no column {column!r}.{did_you_mean(column, table.column_names)}")
        if type(table.features[image]).__name__ == "Image":
            table = table.cast_column(image, type(table.features[image])(decode=False))
        self.table = table.select_columns([image, caption])
        self.texts = table.select_columns([caption])

    def __len__(self) -> int:
        return len(self.texts)

    def example(self, index: int, epoch: int = 0) -> Example:
        """The picture and a caption of row `index`."""
        prompt = self.prompt_only(index, epoch)
        value = self.table[index][self.image]
        shown = picture(_encoded(value, prompt.identifier), prompt.identifier, self.background)
        return Example(prompt.prompt, shown, identifier=prompt.identifier)

    def prompt_only(self, index: int, epoch: int = 0) -> Example:
        """A caption of row `index`, without its picture."""
        name = f"{self.name}/{self.split}/{index}"
        value = self.texts[index][self.caption]
        text = drawn(value, name, seed=self.seed, index=index, epoch=epoch)
        return Example(Prompt(text), identifier=name)


def _encoded(value: Any, name: str) -> bytes | Path:
    """The file of a picture from a cell of the table: bytes, or a path."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        return Path(value)
    raise SampleError(name, "the picture is missing")


def _loaded(
    repository: str | None,
    path: str | Sequence[str] | None,
    split: str,
    config: str | None,
    revision: str | None,
) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ModalignError(
            "dataset 'hub' needs the library datasets; pip install modalign[data]"
        ) from error
    try:
        if path is None:
            return datasets.load_dataset(repository, config, split=split, revision=revision)
        files = _files([path] if isinstance(path, str) else path)
        if len(files) == 1 and files[0].is_dir():
            found = datasets.load_from_disk(str(files[0]))
            return found[split] if isinstance(found, dict) else found
        kind = "arrow" if files[0].suffix == ".arrow" else "parquet"
        return datasets.load_dataset(kind, data_files=[str(file) for file in files], split="train")
    except ModalignError:
        raise
    # `datasets` lets errors of networks, archives and file systems through, of many libraries.
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModalignError(
            f"cannot load {repository or path}: {first}"
            + ("; is there a network, and is the name right?" if repository else "")
        ) from error


def _files(paths: Sequence[str]) -> list[Path]:
    found = [Path(match) for path in paths for match in sorted(glob.glob(path))]
    if not found:
        raise ModalignError(f"no file at {', '.join(paths)}; give .parquet or .arrow files")
    return found


@hookimpl
def modalign_datasets() -> list[DatasetSpec]:
    """Whatever `datasets` loads."""
    return [
        DatasetSpec(
            name="hub",
            summary="a data set of the Hugging Face Hub, or local parquet and arrow files",
            build=Hub,
            requires=("datasets",),
            source="the Hub, when a repository is named",
        )
    ]
