"""How a measurement reports its progress: a callback that any of them takes."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done, and steps in all."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""
