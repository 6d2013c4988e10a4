"""Rich table of an audit, the findings above it and the notes below it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from ghosttrace.report.audit.wording import bounds_text, format_number, interval_text, verdict_sentence
from ghosttrace.report.findings import failed_controls_text
from ghosttrace.report.tables import results_table


def audit_findings(summary: Mapping[str, Any]) -> list[str]:
    """Return the verdict, the failed controls, and the limit with the leaks that this audit could have detected.

    Args:
        summary: Content of summary.json.
    """
    if summary["failures"]:
        return [failed_controls_text(summary["failures"])]
    return [verdict_sentence(summary), bounds_text(summary)]


def audit_notes(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the notes below the table: its legend, the excluded secrets and the skipped attacks.

    Args:
        summary: Content of summary.json.
    """
    yield "* decides the verdict; the intervals of these rows hold jointly at 95 %."
    if any(row["fell_back"] for row in summary["results"]):
        yield "text only: the probe gained too little on validation, so it predicts what the text predicts."
    for secret in summary["excluded"]:
        yield f"Excluded: {secret['trace']}: {secret['reason']}"
    if summary["excluded"]:
        yield f"{len(summary['excluded'])} secrets were excluded."
    yield from summary["left_out"]


def audit_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of the estimates of each attack by secret, 80 columns wide.

    Args:
        rows: The results of summary.json.
    """
    table = results_table()
    table.add_column("attack", overflow="fold", min_width=11, max_width=18)
    for name in ("found", "baseline", "sealed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("unit", overflow="fold", min_width=8, max_width=24)
    sealed = {_kind(row): row["estimate"] for row in rows if row["condition"] == "sealed"}
    shown = [row for row in rows if row["condition"] in ("open", "text")]
    for secret in dict.fromkeys(row["secret"] for row in shown):
        table.add_section()
        table.add_row(f"[bold]{escape(secret)}[/]")
        for row in (row for row in shown if row["secret"] == secret):
            found = "text only" if row["fell_back"] else format_number(row["estimate"])
            value = f"{found} {interval_text(row)}{'*' if row['gate'] else ' '}"
            base, beside = format_number(row["baseline"]), sealed.get(_kind(row))
            unit = escape(f"{row['unit']} {row['note']}")
            table.add_row(row["attack"], value, base, "" if beside is None else format_number(beside), unit)
    return table


def _kind(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return the key that a row shares with its control."""
    return row["attack"], row["secret"], row["unit"], row["note"].partition(" ")[0]
