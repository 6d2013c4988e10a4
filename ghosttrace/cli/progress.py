"""Progress and warnings of a run: a bar on a terminal, lines elsewhere."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ghosttrace.errors import RunWarning
from ghosttrace.runs.progress import Progress

SECONDS_PER_LINE = 30.0
"""Seconds between two lines of progress of one step, in a pipe or a log file."""


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
    with _print_warnings(console), (_bar if console.is_terminal else _lines)(console) as show:
        try:
            yield show
        except KeyboardInterrupt:
            if not (folder / "run.json").exists():
                raise
            resume = f"ghosttrace {command} --resume {escape(str(folder))}"
            console.print(f"Stopped; what is done is kept: {resume}", soft_wrap=True)
            raise


@contextmanager
def _print_warnings(console: Console) -> Iterator[None]:
    """Print every `RunWarning` to the console."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", RunWarning)
        default_showwarning = warnings.showwarning

        def print_warning(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> None:
            if issubclass(category, RunWarning):
                console.print(f"[yellow]{escape(str(message))}[/]", soft_wrap=True)
            else:
                default_showwarning(message, category, *args, **kwargs)

        warnings.showwarning = print_warning
        yield


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    """Yield a callback that moves a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def show(step: str, done: int, total: int) -> None:
            bars.update(task, description=escape(step), completed=done, total=total)

        yield show


@contextmanager
def _lines(console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Progress]:
    """Yield a callback that prints lines: the first and the last of each step, and one every `SECONDS_PER_LINE`."""
    start, printed_step, printed_at = clock(), "", 0.0

    def show(step: str, done: int, total: int) -> None:
        nonlocal printed_step, printed_at
        now = clock()
        if step == printed_step and done < total and now - printed_at < SECONDS_PER_LINE:
            return
        printed_step, printed_at = step, now
        console.print(f"{escape(step)}: {done:,} of {total:,} after {now - start:,.0f} s", soft_wrap=True)

    yield show
