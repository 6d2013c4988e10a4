"""Console output that commands share: findings, tables, and the same as JSON or CSV."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from ghosttrace.cli.options import OutputFormat, load_from_options
from ghosttrace.cli.progress import show_progress
from ghosttrace.report.findings import DO_NOT_RELY
from ghosttrace.runs.folder import as_json, default_folder

if TYPE_CHECKING:
    from ghosttrace.model.checkpoint import Checkpoint
    from ghosttrace.runs.result import RunResult

CONTROL_FAILED_EXIT_CODE = 12
"""Exit code of every measuring command when a control failed."""


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
        The checkpoint, and the keyword arguments `out`, `resume`, `progress`, `options` and, if the command has
        them, `ray` and `workers` of the run.

    Raises:
        UserError: see `ghosttrace.model.checkpoint.load`.
    """
    checkpoint = load_from_options(options)
    resume: Path | None = ctx.params["resume"]
    out: Path = ctx.params["out"] or default_folder(command, checkpoint.name)
    with show_progress(Console(stderr=True), command, resume or out) as progress:
        run = {"out": None if resume else out, "resume": resume, "progress": progress, "options": options}
        yield checkpoint, run | {name: ctx.params[name] for name in ("ray", "workers") if name in ctx.params}


def exit_if_invalid(result: "RunResult") -> None:
    """Exit with `CONTROL_FAILED_EXIT_CODE` if a control of the run failed."""
    if not result.valid:
        raise typer.Exit(CONTROL_FAILED_EXIT_CODE)


def print_result(
    result: "RunResult",
    output: OutputFormat,
    tables: Iterable[Table | None],
    notes: Iterable[str] = (),
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print the findings, then the tables, then the run folder and the next command.

    Args:
        result: The finished run.
        output: As tables; or the findings and all rows of `results` as JSON, or the rows as CSV.
        tables: Tables to print; None is skipped.
        notes: Lines below the tables.
        more: Further entries of the JSON object.
    """
    if output is not OutputFormat.table:
        state = {"valid": result.valid, "failures": list(result.failures), "folder": str(result.folder)}
        print_rows(output, result.findings, result.summary["results"], state | dict(more or {}))
        return
    print_tables(result.findings, tables)
    console = Console()
    for note in notes:
        console.print(escape(note), style="dim", soft_wrap=True)
    folder = escape(str(result.folder))
    console.print(f"\nWritten to {folder}\nNext: ghosttrace report {folder}", soft_wrap=True)


def print_tables(findings: Iterable[str], tables: Iterable[Table | None]) -> None:
    """Print sentences, then tables; in a pipe, a table is as wide as it needs to be whole."""
    console = Console()
    for sentence in findings:
        style = "bold red" if sentence.startswith(DO_NOT_RELY) else "bold"
        console.print(escape(sentence), style=style)
    for table in tables:
        if table is None:
            continue
        console.print()
        needed = Measurement.get(console, console.options.update(width=10_000), table).minimum
        whole = console if console.is_terminal else Console(width=max(console.width, needed))
        whole.print(table)


def print_rows(
    output: OutputFormat, findings: Sequence[str], rows: Sequence[Mapping[str, Any]], more: Mapping[str, Any]
) -> None:
    """Print what a table shows for other programs.

    Args:
        output: `json`, one object with the findings, the further entries and the rows; or `csv`, the rows.
        findings: Sentences that say what was found.
        rows: JSON values by column.
        more: Further entries of the JSON object.
    """
    if output is OutputFormat.json:
        print(json.dumps(as_json({"findings": list(findings), **more, "results": list(rows)}), indent=2))
        return
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(sys.stdout, list(columns), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in row.items()}
        )
