"""Benchmarks. To add one, write a file that makes a `Bench` and name it in `BENCHES`."""

from collections.abc import Callable
from functools import partial

from ghosttrace.bench.ledger import ledger
from ghosttrace.bench.problem import Bench, Grade, Harness, Problem, Protocol
from ghosttrace.errors import UserError

BENCHES: dict[str, Callable[[int, int], Bench]] = {f"ledger-h{level}": partial(ledger, level) for level in range(4)}
GROUPS = {"ledger": tuple(BENCHES)}
DEFAULT_LIMIT = 400


def load_bench(name: str, limit: int | None = None, seed: int = 0) -> list[Bench]:
    """A benchmark, or the members of a group of them.

    Args:
        name: `ledger` (all four levels) or one of them, e.g. `ledger-h1`.
        limit: the number of problems of each.
        seed: which problems, where they are drawn at random.

    Raises:
        UserError: no such benchmark.
    """
    if name not in BENCHES and name not in GROUPS:
        raise UserError(f"no bench {name!r}: choose from {', '.join([*GROUPS, *BENCHES])}")
    if limit is not None and limit < 1:
        raise UserError("--limit is the number of problems, at least 1")
    return [BENCHES[member](limit or DEFAULT_LIMIT, seed) for member in GROUPS.get(name, (name,))]


__all__ = ["BENCHES", "GROUPS", "Bench", "Grade", "Harness", "Problem", "Protocol", "load_bench"]
