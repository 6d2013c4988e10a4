"""An audit as a rich table, and what the terminal says below it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from ghosttrace.report.audit.wording import format_number, interval_text
from ghosttrace.report.tables import results_table

COLOUR = {
    "leak": "red",
    "not detected": "green",
    "within the limit": "yellow",
    "not enough data": "yellow",
    "invalid": "red",
}


def audit_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """What was left out, which controls failed, and the verdict: lines with rich markup."""
    yield "[dim]* decides the verdict; these intervals hold together at 95 %[/]"
    for one in summary["excluded"]:
        yield escape(f"left out: {one['trace']}: {one['reason']}")
    if summary["excluded"]:
        yield f"{len(summary['excluded'])} secrets left out"
    yield from map(escape, summary["left_out"])
    for failure in summary["failures"]:
        yield f"[red]{escape(f'control failed: {failure}')}[/]"
    verdict = summary["verdict"]
    yield f"[bold {COLOUR[verdict]}]{verdict}[/]: {escape(summary['sentence'])}"


def audit_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What each attack found, secret by secret, 80 columns wide.

    Args:
        rows: the results of summary.json.
    """
    table = results_table()
    table.add_column("attack", no_wrap=True, min_width=11)
    for name in ("found", "baseline", "sealed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True, overflow="ellipsis", min_width=8, max_width=24)
    sealed = {_kind(row): row["estimate"] for row in rows if row["condition"] == "sealed"}
    shown = [row for row in rows if row["condition"] in ("open", "text")]
    for secret in dict.fromkeys(row["secret"] for row in shown):
        table.add_section()
        table.add_row(f"[bold]{escape(secret)}[/]")
        for row in (row for row in shown if row["secret"] == secret):
            value = f"{format_number(row['estimate'])} {interval_text(row)}{'*' if row['gate'] else ' '}"
            base, beside = format_number(row["baseline"]), sealed.get(_kind(row))
            unit = escape(f"{row['unit']} {row['note']}")
            table.add_row(row["attack"], value, base, "" if beside is None else format_number(beside), unit)
    return table


def _kind(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """What a row and its control have in common."""
    return row["attack"], row["secret"], row["unit"], row["note"].partition(" ")[0]
