"""The `modalign` command: a few verbs. Errors a user can cause are one line and exit code 2."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from modalign import __version__
from modalign.cli.catalogue import info, list_installed, plugin_check
from modalign.cli.data import data_check, encode, render
from modalign.cli.evaluation import bench
from modalign.cli.generation import generate
from modalign.cli.training import convert, train
from modalign.errors import ModalignError

# typer has carried click along, or taken it from outside: this is its `UsageError` in both.
WrongCall: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="modalign",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Let any vision-language model drive any frozen, image-conditioned generator.",
)
plugin_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Work with plugins.")
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at data.")

app.command()(generate)
app.command(name="list")(list_installed)
app.command()(info)
app.command()(bench)
app.command()(train)
app.command()(convert)
app.command()(encode)
app.command()(render)
plugin_app.command(name="check")(plugin_check)
data_app.command(name="check")(data_check)
app.add_typer(plugin_app, name="plugin")
app.add_typer(data_app, name="data")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"modalign {__version__}")
        raise typer.Exit


@app.callback()
def command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Let any vision-language model drive any frozen, image-conditioned generator."""


def shown(error: ModalignError) -> str:
    """The line that says what went wrong, and in which process if torchrun started several."""
    rank = os.environ.get("RANK", "0")
    return f"error: {error}" if rank == "0" else f"error in process {rank}: {error}"


def said(wrong_call: Any) -> str:
    """What typer has to say about a call, as one line; the help, where it was called for."""
    message: str = wrong_call.format_message()
    if "\n" in message:  # a group without a command: all of its help
        return message
    called = wrong_call.ctx.command_path if wrong_call.ctx else "modalign"
    return f"error: {message.rstrip('.')}; see {called} --help"


def main() -> None:
    """Run the command; an error a user can cause is one line, and exit code 2."""
    try:
        sys.exit(app(prog_name="modalign", standalone_mode=False))
    except ModalignError as error:
        typer.echo(shown(error), err=True)
        sys.exit(2)
    except WrongCall as error:
        typer.echo(said(error), err=True)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):  # the second while typer starts or ends
        sys.exit(130)
