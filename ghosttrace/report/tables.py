"""The look that tables of results share."""

from typing import Any

from rich import box
from rich.table import Table


def results_table(**options: Any) -> Table:
    """An empty rich table without outer edges, narrow enough for six columns of figures in 80 characters.

    Args:
        options: others of `rich.table.Table`, such as `caption` and `width`.
    """
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), **options)
