"""What the commands print: a progress bar, warnings, and whether the controls held."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ghosttrace.cli.options import load_from_options
from ghosttrace.errors import RunWarning
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.runs.folder import default_folder
from ghosttrace.runs.progress import Progress
from ghosttrace.runs.result import RunResult

CONTROL_FAILED_EXIT_CODE = 12
"""The exit code of a run in which a control failed."""


@contextmanager
def show_progress(console: Console, command: str, folder: Path) -> Iterator[Progress]:
    """Show the progress and the warnings of a run; where it is interrupted, say how to go on.

    Args:
        console: where to print.
        command: that is running.
        folder: of the run.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with warnings.catch_warnings(), Bars(*columns, console=console, transient=True) as bars:
        warnings.simplefilter("always", RunWarning)
        plain, task = warnings.showwarning, bars.add_task("starting", total=None)

        def print_warning(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, RunWarning):
                console.print(f"[yellow]{escape(str(message))}[/]", soft_wrap=True)
            else:
                plain(message, category, *where, **more)

        def show(what: str, done: int, total: int) -> None:
            bars.update(task, description=escape(what), completed=done, total=total)

        warnings.showwarning = print_warning
        try:
            yield show
        except KeyboardInterrupt:
            if not (folder / "run.json").exists():
                raise
            resume = f"ghosttrace {command} --resume {escape(str(folder))}"
            console.print(f"Stopped; what is done is kept: {resume}", soft_wrap=True)
            raise


@contextmanager
def load_and_show_progress(
    ctx: typer.Context, command: str, options: dict[str, Any]
) -> Iterator[tuple[Checkpoint, dict[str, Any]]]:
    """The checkpoint that a command's options name, and what every measuring call takes besides its settings.

    Args:
        ctx: of the command, whose `--out` and `--resume` say where the run goes.
        command: that is running.
        options: of its command line (see `gather_options`).

    Yields:
        The checkpoint, and the arguments out, resume, progress and options.

    Raises:
        UserError: see `ghosttrace.model.checkpoint.load`.
    """
    checkpoint = load_from_options(options)
    resume: Path | None = ctx.params["resume"]
    out: Path = ctx.params["out"] or default_folder(command, checkpoint.name)
    with show_progress(Console(), command, resume or out) as progress:
        yield checkpoint, {"out": None if resume else out, "resume": resume, "progress": progress, "options": options}


def print_verdict(result: RunResult) -> None:
    """Say whether the controls held, and where everything is."""
    console = Console()
    held = "Controls held. " if result.valid else ""
    console.print(f"{held}Written to {escape(str(result.folder))}", soft_wrap=True)
    for failure in result.failures:
        console.print(f"[bold red]INVALID[/] {escape(failure)}", soft_wrap=True)
