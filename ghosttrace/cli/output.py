"""Console output that commands share: the progress bar, warnings and the verdict on the controls."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from ghosttrace.cli.options import load_from_options
from ghosttrace.errors import RunWarning
from ghosttrace.report.findings import DO_NOT_RELY
from ghosttrace.runs.folder import default_folder
from ghosttrace.runs.progress import Progress

if TYPE_CHECKING:
    from ghosttrace.model.checkpoint import Checkpoint
    from ghosttrace.runs.result import RunResult

CONTROL_FAILED_EXIT_CODE = 12
"""Exit code of every measuring command when a control failed."""


@contextmanager
def show_progress(console: Console, command: str, folder: Path) -> Iterator[Progress]:
    """Show the progress and the warnings of a run. If the user interrupts it, print how to resume it.

    Args:
        console: console to print to.
        command: name of the running command.
        folder: folder of the run.

    Yields:
        The progress callback to pass to the run.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with warnings.catch_warnings(), Bars(*columns, console=console, transient=True) as bars:
        warnings.simplefilter("always", RunWarning)
        default_showwarning, task = warnings.showwarning, bars.add_task("starting", total=None)

        def print_warning(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> None:
            if issubclass(category, RunWarning):
                console.print(f"[yellow]{escape(str(message))}[/]", soft_wrap=True)
            else:
                default_showwarning(message, category, *args, **kwargs)

        def show(step: str, done: int, total: int) -> None:
            bars.update(task, description=escape(step), completed=done, total=total)

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
) -> Iterator[tuple["Checkpoint", dict[str, Any]]]:
    """Load the checkpoint that the options name, and show the progress of a run on it.

    Args:
        ctx: context of the command; `--out` and `--resume` are read from it.
        command: name of the running command.
        options: the command-line options (see `gather_options`).

    Yields:
        The checkpoint, and the keyword arguments `out`, `resume`, `progress` and `options` of the run.

    Raises:
        UserError: see `ghosttrace.model.checkpoint.load`.
    """
    checkpoint = load_from_options(options)
    resume: Path | None = ctx.params["resume"]
    out: Path = ctx.params["out"] or default_folder(command, checkpoint.name)
    with show_progress(Console(), command, resume or out) as progress:
        yield checkpoint, {"out": None if resume else out, "resume": resume, "progress": progress, "options": options}


def exit_if_invalid(result: "RunResult") -> None:
    """Exit with `CONTROL_FAILED_EXIT_CODE` if a control of the run failed."""
    if not result.valid:
        raise typer.Exit(CONTROL_FAILED_EXIT_CODE)


def print_result(
    result: "RunResult", findings: Iterable[str], tables: Iterable[Table | None], notes: Iterable[str] = ()
) -> None:
    """Print the findings, then the tables, then the run folder and the next command.

    Args:
        result: The finished run.
        findings: Sentences that say what was found and whether it can be relied on.
        tables: Tables to print; None is skipped.
        notes: Lines below the tables.
    """
    print_tables(findings, tables)
    console = Console()
    for note in notes:
        console.print(escape(note), style="dim", soft_wrap=True)
    folder = escape(str(result.folder))
    console.print(f"\nWritten to {folder}\nNext: ghosttrace report {folder}", soft_wrap=True)


def print_tables(findings: Iterable[str], tables: Iterable[Table | None]) -> None:
    """Print sentences, then tables, to the terminal."""
    console = Console()
    for sentence in findings:
        style = "bold red" if sentence.startswith(DO_NOT_RELY) else "bold"
        console.print(escape(sentence), style=style)
    for table in tables:
        if table is not None:
            console.print()
            console.print(table)
