"""Progress callbacks of measurements."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Callback `(description, steps_done, steps_total)`."""


def no_progress(description: str, done: int, total: int) -> None:
    """Report nothing."""
