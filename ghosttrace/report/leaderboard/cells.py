"""The text of the cells of a leaderboard, shared by the terminal's table and the page."""

from collections.abc import Mapping
from typing import Any

from ghosttrace.report.ablation.page import percent, points
from ghosttrace.report.audit.wording import format_number

Row = Mapping[str, Any]
EMPTY = ("", "")


def accuracy(row: Row) -> tuple[str, str]:
    """Return accuracy and interval, in percent; empty if no ablation measured it."""
    return _cell(row, "accuracy", percent)


def drop(row: Row) -> tuple[str, str]:
    """Return the effect on accuracy and its interval, in percentage points."""
    return _cell(row, "effect", points)


def ghost_bits(row: Row) -> tuple[str, str]:
    """Return ghost bits per token and their interval."""
    return _cell(row, "bits", format_number)


def leak(row: Row) -> tuple[str, str]:
    """Return the leak in bits and its interval; `text only` if the probe fell back to the text."""
    value, interval = _cell(row, "leak", format_number)
    return "text only" if row["leak_fell_back"] else value, interval


def exposed(row: Row) -> tuple[str, str]:
    """Return the share of traces whose whole secret is guessed and its interval, in percent."""
    return _cell(row, "exposed", percent)


def utility(row: Row) -> tuple[str, str]:
    """Return what a defence costs in accuracy, in points, or in bits per token, with the interval."""
    in_points = row["utility_unit"] == "accuracy"
    value, interval = _cell(row, "utility_effect", points if in_points else format_number)
    return (value if in_points or not value else f"{value} bits"), interval


def rank(row: Row, name: str) -> str:
    """Return the rank of an estimate among those it is compared with; empty without a comparison."""
    place, of = row[f"{name}_rank"], row[f"{name}_ranked"]
    return "" if place is None or of < 2 else f"rank {place} of {of}"


def ratio(value: float | None) -> str:
    """Return a ratio such as `1.19x`; empty if it is missing."""
    return "" if value is None else f"{value:.2f}x"


def _cell(row: Row, name: str, form: Any) -> tuple[str, str]:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return EMPTY
    ends = ["–" if end is None else form(end) for end in (low, high)]
    return form(value), "" if low is None and high is None else f"[{', '.join(ends)}]"
