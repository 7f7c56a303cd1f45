"""Where a run tells what happens: a file of JSON lines, always; a line to watch; and dashboards."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from modalign.errors import ModalignError, OutputError

Picture = NDArray[np.uint8]
"""(height, width, 3), values 0 to 255."""


class Tracker(Protocol):
    """Told of numbers, words and pictures, each with the step it belongs to."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        ...

    def note(self, step: int, text: str) -> None:
        """Something that happened, in a sentence."""
        ...

    def picture(self, step: int, name: str, array: Picture) -> None:
        """A picture (height, width, 3), uint8."""
        ...

    def close(self) -> None:
        """Nothing comes after this."""
        ...


class JSONLines:
    """Appends a row per call to a file. Rows after the step a run continues from are dropped.

    Pictures go into the folder `pictures` beside the file.

    Raises:
        OutputError: a file cannot be written; of every method.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        """`step` is the last one that counts."""
        self.path = path
        kept = b"".join(line for line in _lines(path) if json.loads(line)["step"] <= step)
        try:
            partial = path.with_name(f".{path.name}")
            partial.write_bytes(kept)
            partial.rename(path)
            self._file = path.open("a")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A row {"step": ..., name: value, ...}."""
        self._row({"step": step, **values})

    def note(self, step: int, text: str) -> None:
        """A row {"step": ..., "note": text}."""
        self._row({"step": step, "note": text})

    def picture(self, step: int, name: str, array: Picture) -> None:
        """A PNG, and a row that names it."""
        from PIL import Image

        target = self.path.parent / "pictures" / f"{name.replace('/', '-')}-{step:08d}.png"
        with self._writing(target):
            target.parent.mkdir(exist_ok=True)
            Image.fromarray(array).save(target)
        self._row({"step": step, "picture": name, "file": f"pictures/{target.name}"})

    def close(self) -> None:
        """Close the file."""
        with self._writing(self.path):
            self._file.close()

    def _row(self, content: Mapping[str, Any]) -> None:
        with self._writing(self.path):
            self._file.write(json.dumps(content) + "\n")
            self._file.flush()

    @staticmethod
    @contextmanager
    def _writing(path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _lines(path: Path) -> list[bytes]:
    """Whole rows of a file; a killed process may have left half a row at the end."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


class ProgressLine:
    """A line on the error stream: step, rate, time left, losses, gradient norm, memory."""

    SHOWN = ("samples_per_second", "grad_norm", "data_wait", "memory_gb")

    def __init__(self, steps: int, step: int = 0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self.console = Console(stderr=True, highlight=False)
        columns = (BarColumn(bar_width=20), MofNCompleteColumn(), Remaining())
        told = TextColumn("{task.fields[told]}")
        self._bars = Progress(
            *columns, told, console=self.console, disable=not self.console.is_terminal
        )
        self._task = self._bars.add_task("", total=steps, completed=step, told="")
        self._steps = steps
        self._bars.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the newest numbers."""
        names = [name for name in values if name.startswith("loss")]
        names += [name for name in values if name in self.SHOWN or name.startswith("eval/")]
        told = "  ".join(f"{name} {values[name]:.4g}" for name in names)
        self._bars.update(self._task, completed=step, told=told)
        if not self.console.is_terminal:
            self._print(f"step {step} of {self._steps}  {told}")

    def note(self, step: int, text: str) -> None:
        """Print it above the line."""
        self._print(f"step {step}: {text}")

    def picture(self, step: int, name: str, array: Picture) -> None:
        """Nothing: a terminal shows none."""

    def close(self) -> None:
        """Leave the line as it is."""
        self._bars.stop()

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


class TensorBoard:
    """Events in `<run>/tensorboard`; steps after the one a run continues from are dropped."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1 if step else None
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar per number."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def note(self, step: int, text: str) -> None:
        """A text."""
        self._writer.add_text("notes", text, step)

    def picture(self, step: int, name: str, array: Picture) -> None:
        """An image."""
        self._writer.add_image(name, array, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases that has the folder's name, and continues when the run does."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        import wandb

        self._wandb: Any = wandb
        name = folder.resolve().name
        self._run: Any = wandb.init(project="modalign", name=name, id=name, resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        self._run.log(dict(values), step=step)

    def note(self, step: int, text: str) -> None:
        """An alert."""
        self._run.alert(title=f"step {step}", text=text)

    def picture(self, step: int, name: str, array: Picture) -> None:
        """An image."""
        self._run.log({name: self._wandb.Image(array)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


DASHBOARDS: dict[str, tuple[str, Callable[[Path, int], Tracker]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
}
"""Name for `--track`: the library it needs, and what is built from the run's folder and step."""


def dashboards(names: tuple[str, ...], folder: Path, step: int) -> list[Tracker]:
    """Those that are named; TensorBoard, where it is installed, if none is.

    Raises:
        ModalignError: one is unknown, or its library is missing.
    """
    require_dashboards(names)
    if not names:
        names = ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    return [DASHBOARDS[name][1](folder, step) for name in names]


def require_dashboards(names: tuple[str, ...]) -> None:
    """Refuse at once what `dashboards` could not make.

    Raises:
        ModalignError: one is unknown, or its library is missing.
    """
    for name in names:
        if name not in DASHBOARDS:
            raise ModalignError(f"no tracker {name!r}; use one of {', '.join(DASHBOARDS)}")
        if importlib.util.find_spec(DASHBOARDS[name][0]) is None:
            raise ModalignError(f"tracker {name!r} is not installed: pip install {name}")
