"""Markdown tables and the number formats that they share."""

import re
from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; columns of numbers are aligned right."""
    cells = [list(row) for row in rows]
    marks = ["---:" if _is_numeric([row[column] for row in cells]) else "---" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, marks, *cells])


def _is_numeric(column: Sequence[str]) -> bool:
    """Return whether every cell is empty or a number, with an interval or a unit if need be."""
    return all(re.fullmatch(r"[-+]?[\d.,]*x?( \[[^]]*\]| \([^)]*\)| MB| ms| %| of \d+)?", cell) for cell in column)


def percent(share: Any, digits: int = 1) -> str:
    """Return a share in percent, without the sign of a rounded zero."""
    return number(100 * share, digits)


def number(value: Any, digits: int = 2) -> str:
    """Return a number without the sign of a rounded zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def interval(ends: Iterable[Any], digits: int = 2) -> str:
    """Return an estimate with its interval, given as estimate, low and high."""
    value, low, high = ends
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def ratios(values: Sequence[float]) -> str:
    """Return the median of repeated ratios, with the range where there are several."""
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2] if len(ordered) % 2 else sum(ordered[len(ordered) // 2 - 1 :][:2]) / 2
    return f"{middle:.2f}x" if len(ordered) == 1 else f"{middle:.2f}x ({ordered[0]:.2f} to {ordered[-1]:.2f})"
