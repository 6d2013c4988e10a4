"""What the annotation pipeline prints: counts, reasons, costs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from ghosttrace.report.tables import results_table


def build_findings(counts: Mapping[str, int], set_aside: int, cost: float) -> list[str]:
    """Return the findings of a build in sentences.

    Args:
        counts: number of rows by configuration.
        set_aside: number of traces set aside.
        cost: dollars for all calls in the folder.
    """
    rejected, accepted = counts["rejected"], counts["full"]
    return [
        f"Rows: {accepted:,} accepted, {rejected:,} with a memento below the threshold, {set_aside:,} set aside.",
        f"All calls in this folder cost {cost:,.4f} dollars at the given prices.",
    ]


def next_step(folder: str, accepted: int, rejected: int) -> str:
    """Return the line that names the next command for a data set."""
    if accepted:
        return f"Next: ghosttrace sft --model MODEL --data {folder}/default/train.parquet"
    if not rejected:
        return f"Next: read {folder}/set_aside.jsonl, which names for each trace why it was set aside"
    return f"Next: read {folder}/rejected/train.jsonl, then use a stronger model or a lower --threshold"


def reasons_table(reasons: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return the table of the reasons with which traces were set aside; None if there are none."""
    if not reasons:
        return None
    table = results_table(caption="Traces set aside, by stage and reason")
    table.add_column("stage")
    table.add_column("reason")
    table.add_column("traces", justify="right")
    for row in reasons:
        table.add_row(row["stage"], row["reason"], f"{row['count']:,}")
    return table


def cost_table(costs: Iterable[Mapping[str, Any]]) -> Table | None:
    """Return the table of calls, tokens and dollars by stage; None if there were no calls.

    Args:
        costs: `stage`, `calls`, `prompt_tokens`, `completion_tokens`, `cost`, and `most_cost` in an estimate or
            `without_usage` in a bill.
    """
    rows = list(costs)
    if not rows:
        return None
    estimated = "most_cost" in rows[0]
    table = results_table(caption="Estimated cost in dollars" if estimated else "Cost in dollars")
    table.add_column("stage")
    titles = {"calls": "calls", "prompt_tokens": "tokens in", "completion_tokens": "tokens out", "cost": "cost"}
    if estimated:
        titles["most_cost"] = "with all rewrites"
    elif any(row["without_usage"] for row in rows):
        titles["without_usage"] = "calls without usage, counted at most"
    columns = list(titles)
    for title in titles.values():
        table.add_column(title, justify="right")
    for row in [*rows, {"stage": "all"} | {name: sum(row[name] for row in rows) for name in columns}]:
        numbers = [f"{row[name]:,.4f}" if "cost" in name else f"{row[name]:,}" for name in columns]
        table.add_row(row["stage"], *numbers)
    return table


def check_findings(rows: int, blocks: int, problems: int, bad_rows: int) -> list[str]:
    """Return the findings of a check in sentences."""
    if not problems:
        return [f"Rows without problems: {rows:,} of {rows:,}; they hold {blocks:,} blocks with their mementos."]
    return [f"{bad_rows:,} of {rows:,} rows have problems, {problems:,} in all."]


def problems_table(problems: Iterable[Any]) -> Table:
    """Return the table of problems: `row`, `name` and `message` of each."""
    table = results_table()
    table.add_column("row", justify="right")
    table.add_column("name")
    table.add_column("problem")
    for problem in problems:
        table.add_row(str(problem.row), problem.name, problem.message)
    return table
