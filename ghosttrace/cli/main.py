"""The entry point of the command line. Invalid input prints one sentence and exits with code 2."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from ghosttrace import __version__
from ghosttrace.cli import allocator
from ghosttrace.cli.ablate import ablate
from ghosttrace.cli.audit import audit
from ghosttrace.cli.bits import bits
from ghosttrace.cli.data import app as data_app
from ghosttrace.cli.info import info
from ghosttrace.cli.init_tokens import init_tokens
from ghosttrace.cli.leaderboard import leaderboard
from ghosttrace.cli.patch import patch
from ghosttrace.cli.plan import plan
from ghosttrace.cli.probe import probe
from ghosttrace.cli.report import report
from ghosttrace.cli.rl import rl
from ghosttrace.cli.serve import serve
from ghosttrace.cli.sft import sft
from ghosttrace.errors import UserError

PASS_THROUGH_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of a command that passes unknown options on to another program."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"ghosttrace {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Study, train, serve and audit language models that erase their own reasoning."""
    if ctx.invoked_subcommand in allocator.COMMANDS:
        allocator.keep_freed_memory()


COMMANDS: tuple[Callable[..., None], ...] = (
    *(ablate, bits, probe, patch, audit, report, leaderboard, plan, info, init_tokens),
)
for command in COMMANDS:
    app.command(command.__name__.replace("_", "-"))(command)
app.command(context_settings=PASS_THROUGH_ARGUMENTS)(sft)
app.command(context_settings=PASS_THROUGH_ARGUMENTS)(rl)
app.command(context_settings=PASS_THROUGH_ARGUMENTS)(serve)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command line. A `UserError` prints its message and exits with code 2."""
    try:
        app()
    except UserError as error:
        print(f"ghosttrace: {error}", file=sys.stderr)
        sys.exit(2)
