"""What the commands print: a progress bar, warnings, and whether the controls held."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ghosttrace.errors import RunWarning
from ghosttrace.runs.progress import Progress
from ghosttrace.runs.result import RunResult


@contextmanager
def reporting(console: Console, command: str, folder: Path) -> Iterator[Progress]:
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
            resume = f"ghosttrace {command} --resume {escape(str(folder))}"
            console.print(f"Stopped; what is done is kept: {resume}", soft_wrap=True)
            raise


def print_verdict(console: Console, result: RunResult) -> None:
    """Whether the controls held, and where everything is."""
    held = "Controls held. " if result.valid else ""
    console.print(f"{held}Written to {escape(str(result.folder))}", soft_wrap=True)
    for failure in result.failures:
        console.print(f"[bold red]INVALID[/] {escape(failure)}", soft_wrap=True)
