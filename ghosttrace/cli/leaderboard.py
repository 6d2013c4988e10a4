"""The command `ghosttrace leaderboard`: finished runs side by side."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ghosttrace.cli.options import Format, OutputFormat
from ghosttrace.cli.output import print_rows, print_tables


def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs of ablate, bits and audit.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder for leaderboard.html and leaderboard.parquet; those of an earlier one are replaced."),
    ],
    format: Format = OutputFormat.table,
) -> None:
    """Gather finished runs into one page and one Parquet file: by model, law, benchmark and defence."""
    from ghosttrace.leaderboards.result import PAGE_FILE
    from ghosttrace.leaderboards.result import leaderboard as gather
    from ghosttrace.report.leaderboard.table import leaderboard_tables

    board = gather(runs, out)
    if format is not OutputFormat.table:
        print_rows(format, board.findings, board.rows, {"folder": str(out)})
        return
    print_tables(board.findings, leaderboard_tables(board.rows))
    Console().print(f"\nWritten to {escape(str(out / PAGE_FILE))}", soft_wrap=True)
