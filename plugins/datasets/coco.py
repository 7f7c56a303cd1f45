"""COCO's pictures, each with several captions."""

import json
from pathlib import Path

from modalign import DatasetSpec, Example, ModalignError, Prompt, hookimpl
from modalign.data import Background, drawn, picture


class Coco:
    """The pictures of a split in the order of the annotations; one caption is drawn per epoch.

    Args:
        path: the folder that holds `annotations/captions_SPLIT.json` and the pictures in `SPLIT/`.
        split: such as "train2017" or "val2017".
        seed: of the draws.
        background: what transparent pictures show.
    """

    def __init__(
        self,
        path: str,
        split: str = "val2017",
        *,
        seed: int = 0,
        background: Background = "black",
    ) -> None:
        """Reads the annotations.

        Raises:
            ValueError: they are not there.
            ModalignError: they are not COCO's.
        """
        self.root, self.split = Path(path), split
        self.seed, self.background = seed, background
        table = self.root / "annotations" / f"captions_{split}.json"
        if not table.is_file():
            raise ValueError(f"no annotations at {table}; path is the folder above `annotations`")
        try:
            content = json.loads(table.read_bytes())
            self.files = {image["id"]: str(image["file_name"]) for image in content["images"]}
            self.captions: dict[int, list[str]] = {number: [] for number in self.files}
            for note in content["annotations"]:
                self.captions.setdefault(note["image_id"], []).append(note["caption"])
        except (ValueError, KeyError, TypeError) as error:
            raise ModalignError(
                f"{table} is damaged, or holds no captions of COCO: {type(error).__name__} {error}"
            ) from error
        self.numbers = list(self.captions)
        if not self.numbers:
            raise ValueError(f"no picture in {table}")

    def __len__(self) -> int:
        return len(self.numbers)

    def example(self, index: int, epoch: int = 0) -> Example:
        """Picture `index` and one of its captions."""
        prompt = self.prompt_only(index, epoch)
        file = self.root / self.split / self.files.get(self.numbers[index], "unlisted")
        shown = picture(file, prompt.identifier, self.background)
        return Example(prompt.prompt, shown, identifier=prompt.identifier)

    def prompt_only(self, index: int, epoch: int = 0) -> Example:
        """A caption of picture `index`, which is not read."""
        number = self.numbers[index]
        name = f"coco/{self.split}/{self.files.get(number, number)}"
        text = drawn(self.captions[number], name, seed=self.seed, index=index, epoch=epoch)
        return Example(Prompt(text), identifier=name)


@hookimpl
def modalign_datasets() -> list[DatasetSpec]:
    """COCO's captions."""
    return [
        DatasetSpec(
            name="coco",
            summary="COCO's pictures; one of the captions of each is drawn per epoch",
            build=Coco,
            source="cocodataset.org: captions_SPLIT.json and the pictures",
            license="CC BY 4.0 for annotations; pictures as their owners say",
        )
    ]
