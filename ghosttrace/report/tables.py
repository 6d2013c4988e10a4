"""The shared style of result tables."""

from typing import Any

from rich import box
from rich.table import Table


def results_table(**options: Any) -> Table:
    """Return an empty rich table without outer edges, narrow enough for six columns of numbers in 80 characters.

    Args:
        options: Further arguments of `rich.table.Table`, such as `caption` and `width`.
    """
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), **options)
