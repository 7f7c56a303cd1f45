"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Left to right: a room may import only rooms of an earlier row, or its own.
ROWS = [
    {"errors"},
    {"hub"},
    {"tokens"},
    {"recipe"},
    {"specs"},
    {"hookspecs"},
    {"registry"},
    {"spaces"},
    {"rendering"},
    {"models", "objectives", "sampling", "metrics", "assets", "recipes", "testing"},
    {"meshing"},
    {"pairing"},
    {"contract", "fingerprint", "fitting", "parts"},
    {"card", "checkpoint"},
    {"conversion"},
    {"pipeline"},
    {"assembly"},
    {"data"},
    {"training", "evaluation"},
    {"files", "terminal"},
    {"cli"},
    {"__main__"},
]
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}


def imports(path: Path) -> Iterator[str]:
    """Absolute names a file imports anywhere, type-checking blocks included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def library_files() -> list[Path]:
    return sorted((ROOT / "modalign").rglob("*.py"))


def test_every_room_has_a_place_in_the_order() -> None:
    rooms = {
        path.stem
        for path in (ROOT / "modalign").iterdir()
        if path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").exists())
    }
    assert rooms - {"__init__"} == set(RANK)


@pytest.mark.parametrize("path", library_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_from_the_left(path: Path) -> None:
    relative = path.relative_to(ROOT / "modalign")
    room = relative.parts[0].removesuffix(".py")
    if room == "__init__":
        pytest.skip("the public face imports every room, on first use")
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] != "modalign_plugins", f"{relative} imports a plugin: {name}"
        if parts[0] != "modalign" or len(parts) == 1:
            continue
        other = parts[1]
        assert (
            other == room
            or RANK[other] < RANK[room]
            or (
                # Objectives, samplers and the like share a row; sampling is what others build on.
                RANK[other] == RANK[room] and other == "sampling"
            )
        ), f"{relative} (room {room}) imports {name}, which is not to its left"


# What plugins share: pictures as models read them, and where weights lie. No plugin itself.
SHARED = ("modalign_plugins.pictures", "modalign_plugins.weights")


def test_plugins_use_the_library_and_never_each_other() -> None:
    for path in sorted((ROOT / "plugins").rglob("*.py")):
        relative = path.relative_to(ROOT / "plugins")
        # A folder inside a plugin's folder is of the same plugin.
        own = (".".join(("modalign_plugins", *relative.parts[:2])),) if relative.parts[3:] else ()
        for name in imports(path):
            assert not name.startswith("modalign_plugins") or name.startswith(SHARED + own), (
                f"plugins/{relative} imports {name}; a plugin never imports another plugin"
            )


def test_importing_modalign_loads_no_model_library() -> None:
    code = (
        "import sys, modalign; modalign.Recipe; modalign.installed;"
        "print([m for m in ('torch', 'transformers', 'timm', 'diffusers', 'numpy') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout.strip() == "[]"


def test_listing_plugins_loads_no_model_library() -> None:
    code = (
        "import sys; from modalign import installed; assert installed().catalogue.encoders;"
        "print([m for m in ('transformers', 'timm', 'open_clip', 'diffusers', 'torchvision') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout.strip() == "[]"


def test_the_public_face_resolves() -> None:
    import modalign

    for name in modalign.__all__:
        assert getattr(modalign, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = modalign.nonsense


def test_no_file_is_a_drawer() -> None:
    names = {path.stem for path in [*library_files(), *(ROOT / "plugins").rglob("*.py")]}
    assert not names & {"utils", "helper", "helpers", "misc", "common", "base", "manager"}
    assert not names & {"build", "train", "generate"}, "would overwrite the public functions"
