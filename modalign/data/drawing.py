"""What `modalign render` does: a folder of meshes becomes pictures that training reads."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from modalign.assets import FORMATS, write_whole
from modalign.data.processes import outcomes
from modalign.data.views import ViewPlan, object_files
from modalign.errors import ModalignError, OutputError
from modalign.specs import Progress, ProgressCallback

RECORD = "render.json"
NAMED = 10  # meshes that were skipped that are written out


class Job(NamedTuple):
    """One mesh, the folder that its pictures become, and where they are made first."""

    mesh: Path
    target: Path
    aside: Path
    plan: ViewPlan


@dataclass
class Drawn:
    """What became of a folder of meshes; `skipped` has a reason for each by its relative path.

    `unreadable` names captions that are no UTF-8 text; their objects are drawn without.
    """

    output: Path
    drawn: int = 0
    kept: int = 0
    captioned: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The findings, a line each."""
        there = self.drawn + self.kept
        lines = [
            f"{self.output}: {self.drawn:,} drawn, {self.kept:,} were there, "
            f"{len(self.skipped):,} skipped; {self.captioned:,} of {there:,} have captions"
        ]
        lines += [f"  {name}: {why}" for name, why in list(self.skipped.items())[:NAMED]]
        if len(self.skipped) > NAMED:
            lines.append(f"  and {len(self.skipped) - NAMED:,} more, in {self.output / RECORD}")
        if self.unreadable:
            some = ", ".join(self.unreadable[:NAMED])
            more = len(self.unreadable) - NAMED
            lines.append(
                f"captions that are no UTF-8: {some}{f' and {more:,} more' if more > 0 else ''}"
            )
        return "\n".join(lines)


def render_folder(
    folder: Path,
    output: Path,
    plan: ViewPlan,
    *,
    workers: int = 0,
    progress: ProgressCallback | None = None,
) -> Drawn:
    """Draw every GLB, OBJ and PLY below `folder` into `output`, in the layout that `renders` reads.

    `output/renders/NAME` holds the pictures, `transforms.json`, and `captions.json` if NAME.txt
    with a caption a line lies beside the mesh; NAME is the mesh's path without its extension,
    folders joined by "__". It appears when it is complete and is then not drawn again, unless the
    mesh's size in bytes has changed. The bytes do not depend on the order or the number of workers.

    Args:
        folder: of meshes, in sub-folders too.
        output: a new folder, or one of an earlier run with the same plan.
        plan: which pictures.
        workers: processes that draw; 0 draws in this one.
        progress: called after every mesh.

    Raises:
        ModalignError: there is no mesh, or not one can be drawn.
        OutputError: `output` holds something else, or cannot be written.
    """
    meshes = _meshes(folder)
    try:
        _claim(output, plan)
        with tempfile.TemporaryDirectory(dir=output, prefix=".unfinished-") as aside:
            found = _draw_all(folder, meshes, output, Path(aside), plan, workers, progress)
        _record(output, plan, found.skipped)
    except OSError as error:
        raise OutputError(f"cannot write into {output}: {error.strerror or error}") from error
    if not found.drawn + found.kept:
        name, why = next(iter(found.skipped.items()))
        raise ModalignError(
            f"none of {len(meshes):,} meshes can be drawn; the first: {name}: {why}"
        )
    return found


def _draw_all(
    folder: Path,
    meshes: Sequence[Path],
    output: Path,
    aside: Path,
    plan: ViewPlan,
    workers: int,
    progress: ProgressCallback | None,
) -> Drawn:
    found, skipped, owner = Drawn(output), {}, dict[str, Path]()
    jobs = []
    for mesh in meshes:
        name = "__".join(mesh.relative_to(folder).with_suffix("").parts)
        job = Job(mesh, output / "renders" / name, aside, plan)
        if name in owner:
            skipped[mesh] = f"{owner[name].relative_to(folder)} has the same name {name!r}"
            continue
        owner[name] = mesh
        if _complete(job):
            found.kept += 1
            _copy_captions(job, found)
        else:
            jobs.append(job)
    done = len(meshes) - len(jobs)
    for job, reason in outcomes(draw, jobs, workers):
        if reason is None:
            found.drawn += 1
            _copy_captions(job, found)
        else:
            skipped[job.mesh] = reason
        done += 1
        if progress is not None:
            progress(Progress("drawing", done, len(meshes)))
    found.skipped = {str(mesh.relative_to(folder)): skipped[mesh] for mesh in sorted(skipped)}
    return found


def draw(job: Job) -> str | None:
    """Make one object's folder, whole or not at all; the reason if its mesh cannot be drawn.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        files = object_files(job.mesh, job.plan)
    except (ValueError, ModalignError) as error:
        return str(error)
    # Whatever a mesh of strangers breaks, the others are drawn.
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    made = job.aside / secrets.token_hex(8)
    made.mkdir()
    for name, content in files.items():
        (made / name).write_bytes(content)
    if job.target.exists():
        os.replace(job.target, job.aside / secrets.token_hex(8))
    os.replace(made, job.target)
    return None


def _meshes(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ModalignError(f"no folder at {folder}")
    meshes = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in FORMATS["mesh"]
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not meshes:
        raise ModalignError(f"no mesh below {folder}; expected {', '.join(FORMATS['mesh'])}")
    return meshes


def _claim(output: Path, plan: ViewPlan) -> None:
    """Make the folder, or go on with the one of an earlier run.

    Raises:
        OutputError: it holds something else, or was drawn with another plan.
    """
    record = output / RECORD
    if record.is_file():
        try:
            before = json.loads(record.read_bytes())["plan"]
            changed = [name for name, value in asdict(plan).items() if before[name] != value]
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{record} is damaged; choose another folder") from error
        if changed:
            said = ", ".join(f"{name} {before[name]}" for name in changed)
            raise OutputError(f"{output} was drawn with {said}; say so, or choose another folder")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"{output} is there and holds no {RECORD}; choose another folder")
    else:
        output.mkdir(parents=True, exist_ok=True)
        _record(output, plan, {})
    (output / "renders").mkdir(exist_ok=True)


def _record(output: Path, plan: ViewPlan, skipped: dict[str, str]) -> None:
    content = {"plan": asdict(plan), "skipped": skipped}
    write_whole(output / RECORD, json.dumps(content, indent=1).encode())


def _complete(job: Job) -> bool:
    """Whether all pictures of this very mesh are there."""
    try:
        told = json.loads((job.target / "transforms.json").read_bytes())
        pictures = [job.target / frame["file_path"] for frame in told["frames"]]
        same: bool = told["source"]["bytes"] == job.mesh.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same and all(picture.is_file() for picture in pictures)


def _copy_captions(job: Job, found: Drawn) -> None:
    """Copy the captions beside a mesh, a line each, to its pictures, and count what is there."""
    beside, target = job.mesh.with_suffix(".txt"), job.target / "captions.json"
    if beside.is_file():
        try:
            lines = beside.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            found.unreadable.append(beside.name)
            lines = []
        captions = [line.strip() for line in lines if line.strip()]
        content = json.dumps(captions, ensure_ascii=False, indent=1).encode()
        if captions and not (target.is_file() and target.read_bytes() == content):
            write_whole(target, content)
    found.captioned += target.is_file()
