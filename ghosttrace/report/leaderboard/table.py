"""Findings and rich tables of a leaderboard."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from ghosttrace.report.findings import DO_NOT_RELY
from ghosttrace.report.leaderboard import cells
from ghosttrace.report.leaderboard.cells import Row
from ghosttrace.report.tables import results_table


def leaderboard_findings(rows: Sequence[Row]) -> list[str]:
    """Return what a leaderboard compares, and which of its runs are invalid, in sentences."""
    runs = {(run["kind"], run["name"], run["command"]) for row in rows for run in row["runs"]}
    models, benchmarks = ({row[name] for row in rows} for name in ("model_sha256", "benchmark"))
    counts = ((len(runs), "run"), (len(models), "model"), (len(benchmarks), "benchmark"))
    words = [f"{count} {noun}{'s' * (count != 1)}" for count, noun in counts]
    invalid = dict.fromkeys((run["name"], row["failures"]) for row in rows if not row["valid"] for run in row["runs"])
    return [
        f"{words[0]}, {words[1]}, {words[2]}: {len(rows)} row{'s' * (len(rows) != 1)}.",
        *(f"{DO_NOT_RELY} {name}, because a control failed: {failures}." for name, failures in invalid),
    ]


def leaderboard_tables(rows: Sequence[Row]) -> list[Table]:
    """Return a table for each benchmark, 80 columns wide; numbers of invalid runs are left out.

    Args:
        rows: Rows of `ghosttrace.leaderboards.result.Leaderboard`.
    """
    return [
        _table(benchmark, [row for row in rows if row["benchmark"] == benchmark])
        for benchmark in dict.fromkeys(row["benchmark"] for row in rows)
    ]


def _table(benchmark: str, rows: Sequence[Row]) -> Table:
    table = results_table(
        title=f"[bold]{escape(benchmark)}[/]",
        title_justify="left",
        caption="accuracy in %, drop in points against memento, ghost bits per token, leak in bits per secret, with "
        "intervals; rank: among rows measured on the same problems under the same settings.",
    )
    table.add_column("model, defence, law", overflow="fold", max_width=19)
    for name in ("accuracy", "drop", "ghost bits", "leak"):
        table.add_column(name, justify="right", overflow="fold", max_width=16)
    for row in rows:
        name = f"[bold]{escape(row['model'])}[/]\n{escape(row['defence'])}\n[dim]{escape(row['law'])}[/]"
        if not row["valid"]:
            table.add_row(name, "[red]INVALID[/]", *[""] * 3)
            continue
        leak = (*cells.leak(row), row["verdict"] or "", cells.rank(row, "leak"))
        values = ((*cells.accuracy(row), cells.rank(row, "accuracy")), cells.drop(row), cells.ghost_bits(row), leak)
        table.add_row(name, *("\n".join(escape(line) for line in value if line) for value in values))
    return table
