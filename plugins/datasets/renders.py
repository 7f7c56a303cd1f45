"""Renders of 3-D assets in TRELLIS's layout, each asset with several captions."""

import csv
import json
from pathlib import Path
from typing import Any

from modalign import DatasetSpec, Example, ModalignError, Prompt, SampleError, hookimpl
from modalign.data import Background, drawn, picture


class Renders:
    """Views of assets: index is asset number times `views` plus view; a caption per epoch.

    An asset is a folder with `transforms.json`, whose frames name the pictures. It lies in
    `renders` below the path, or in the path itself. Its captions stand in `metadata.csv` beside
    `renders`, a JSON list in the column `captions` of the row whose `sha256` is the folder's name;
    or, without that table, in the asset's `captions.json`, a list, or `captions.txt`, one a line.

    Args:
        path: the folder above.
        views: how many frames of each asset are samples, the first ones.
        folder: the renders' folder below the path, such as "renders_cond".
        seed: of the draws of captions.
        background: what transparent pictures show; black is what TRELLIS was trained on.
    """

    kind = "renders"

    def __init__(
        self,
        path: str,
        *,
        views: int = 1,
        folder: str = "renders",
        seed: int = 0,
        background: Background = "black",
    ) -> None:
        """Lists the assets and reads the table.

        Raises:
            ValueError: there is no asset, or `views` is below 1.
            ModalignError: the table is damaged.
        """
        root = Path(path)
        if views < 1:
            raise ValueError(f"views is {views}; use 1 or more")
        if not root.is_dir():
            raise ValueError(f"no folder at {path}")
        self.root = root / folder if (root / folder).is_dir() else root
        self.views, self.seed, self.background = views, seed, background
        self.rows = _rows(root / "metadata.csv")
        self.assets = self._assets()
        if not self.assets:
            raise ValueError(
                f"no asset in {self.root}; expected folders with transforms.json and pictures"
            )

    def __len__(self) -> int:
        return len(self.assets) * self.views

    def example(self, index: int, epoch: int = 0) -> Example:
        """View `index % views` of asset `index // views`, and one of its captions."""
        prompt = self.prompt_only(index, epoch)
        asset, view = divmod(index, self.views)
        file = self._frame(self.root / self.assets[asset], view, prompt.identifier)
        shown = picture(file, prompt.identifier, self.background)
        return Example(prompt.prompt, shown, identifier=prompt.identifier)

    def prompt_only(self, index: int, epoch: int = 0) -> Example:
        """A caption of that asset; its picture is not read."""
        asset, view = divmod(index, self.views)
        name = self._name(self.assets[asset], view)
        # By index, not asset: the views of an asset show different captions.
        text = drawn(
            self._captions(self.assets[asset], name), name, seed=self.seed, index=index, epoch=epoch
        )
        return Example(Prompt(text), identifier=name)

    def _assets(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.is_dir())

    def _name(self, asset: str, view: int) -> str:
        return f"{self.kind}/{asset}/{view}"

    def _captions(self, asset: str, name: str) -> Any:
        if self.rows:
            text = self.rows.get(asset, {}).get("captions")
            try:
                return json.loads(text) if text else None
            except ValueError:
                return text  # one caption, as plain text
        listed, lines = (self.root / asset / f"captions.{end}" for end in ("json", "txt"))
        try:
            if listed.is_file():
                return json.loads(listed.read_bytes())
            if lines.is_file():
                return [line for line in lines.read_text().splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise SampleError(name, f"the captions cannot be read: {error}") from error
        return None

    def _frame(self, asset: Path, view: int, name: str) -> Path:
        try:
            frames = json.loads((asset / "transforms.json").read_bytes())["frames"]
            file = asset / str(frames[view]["file_path"])
        except FileNotFoundError as error:
            raise SampleError(name, "transforms.json is missing") from error
        except IndexError as error:
            raise SampleError(name, f"there is no view {view}, only {len(frames)}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SampleError(name, f"transforms.json is damaged: {error}") from error
        return file if file.suffix else file.with_suffix(".png")


class Toys4K(Renders):
    """Toys4K's renders in the order of its table; names begin with the class of the toy."""

    kind = "toys4k"

    def _assets(self) -> list[str]:
        if not self.rows:
            raise ValueError(f"no metadata.csv above {self.root}; toys4k takes its classes from it")
        return [asset for asset in self.rows if (self.root / asset).is_dir()]

    def _name(self, asset: str, view: int) -> str:
        toy_class = self.rows[asset].get("file_identifier", "").split("/")[0]
        return f"{self.kind}/{toy_class}/{asset}/{view}"


def _rows(table: Path) -> dict[str, dict[str, str]]:
    """Rows of the table by asset; none if there is no table."""
    if not table.is_file():
        return {}
    kept = ("captions", "file_identifier")
    try:
        with open(table, newline="", encoding="utf-8-sig", errors="replace") as file:
            return {
                row["sha256"]: {name: row[name] for name in kept if row.get(name)}
                for row in csv.DictReader(file)
            }
    except (KeyError, csv.Error) as error:
        raise ModalignError(f"{table} has no column {error}, or is no CSV table") from error


@hookimpl
def modalign_datasets() -> list[DatasetSpec]:
    """Renders, and those of Toys4K."""
    return [
        DatasetSpec(
            name="renders",
            summary="renders of 3-D assets as TRELLIS's tools leave them, a caption per epoch",
            build=Renders,
        ),
        DatasetSpec(
            name="toys4k",
            summary="renders of Toys4K with the table of TRELLIS-500K",
            build=Toys4K,
            source="Toys4K's objects; metadata.csv of TRELLIS-500K",
        ),
    ]
