"""The command as such: its help, wrong calls, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modalign import (
    __version__,
)
from tests.modalign import stubs
from tests.modalign.cli.outcomes import Command, refused


def test_names_that_are_not_there_offer_the_closest(command: Command) -> None:
    refused(
        command("generate", "a mug", "--recipe", "gap3d-mni"),
        "unknown recipe 'gap3d-mni'. Did you mean 'gap3d-mini'",
    )
    refused(command("info", "dinov2-mini"), "nothing is called", "Did you mean 'dinov2-mini-reg'")
    refused(command("plugin", "check", "trelis-mini"), "Did you mean 'trellis-mini'")


def test_an_interrupt_exits_with_130_and_no_traceback(
    command: Command, use: Any, tmp_path: Path
) -> None:
    class Slow(stubs.Generator):
        def generate(self, *arguments: Any, **options: Any) -> Any:
            raise KeyboardInterrupt

    options = use(stubs.registry(generator={"build": stubs.giving(Slow())}))
    code, out, err = command("generate", "a mug", *options)
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["generat", "a mug"], ["No such command 'generat'", "'generate'", "see modalign --help"]),
        (["generate", "a mug", "--sed", "1"], ["No such option", "see modalign generate --help"]),
        (["generate", "a mug", "--seed", "-1"], ["'--seed'"]),
        (["generate", "a mug", "--seed", "x"], ["'--seed'", "valid integer"]),
        (["generate", "a mug", "--steps", "0"], ["'--steps'"]),
        (["generate", "a mug", "--num-samples", "65"], ["'--num-samples'"]),
        (["train", "gap3d"], ["Missing option '--output'", "see modalign train --help"]),
        (["plugin", "chek"], ["No such command 'chek'", "see modalign plugin --help"]),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(
    command: Command, arguments: list[str], parts: list[str]
) -> None:
    refused(command(*arguments), *parts)


@pytest.mark.parametrize("group", [[], ["plugin"], ["data"]])
def test_without_a_verb_the_help_is_shown(command: Command, group: list[str]) -> None:
    code, out, err = command(*group)
    assert (code, out) == (2, "")
    assert err.startswith(f"Usage: {' '.join(['modalign', *group])} ")
    assert err.endswith("\n")
    assert "error" not in err


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cuda:x"])
def test_a_device_that_is_not_there_is_refused(command: Command, device: str) -> None:
    refused(command("generate", "a mug", "--device", device), repr(device), "use one of: cpu")


def test_the_version_is_shown(command: Command) -> None:
    assert command("--version")[:2] == (0, f"modalign {__version__}\n")


def test_help_comes_at_once_and_exits_with_0() -> None:
    """Half a second of work at most: nobody waits, and no model library is imported."""
    code = (
        "import sys; sys.argv = ['modalign', '--help']; from modalign import cli\n"
        "try: cli.main()\n"
        "finally: print({'torch', 'numpy', 'PIL', 'pydantic'} & set(sys.modules))"
    )
    call = [sys.executable, "-c", code]
    taken = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run(call, capture_output=True, text=True, timeout=600, check=True)
        after = os.times()
        taken.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
    assert "generate" in done.stdout
    assert done.stdout.endswith("set()\n")
    assert min(taken) < 0.5


def test_the_command_refuses_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "modalign", "generate", " "],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the prompt is empty; describe what to make\n"


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "modalign", "--version"], capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stdout) == (0, f"modalign {__version__}\n")
