"""Benchmarks. To add one, write a file that makes a `Bench`, or a row in `hub.SOURCES`."""

from pathlib import Path

from ghosttrace.bench.contests import SOURCES, contest, local, protocol, read_problems
from ghosttrace.bench.ledger import DIGITS, ledger
from ghosttrace.bench.problem import Bench, Grade, Harness, Problem, Protocol, final_text
from ghosttrace.errors import UserError

LEDGERS = {f"ledger-h{level}": level for level in range(DIGITS + 1)}
GROUPS = {"ledger": tuple(LEDGERS), "hmmt": tuple(name for name in SOURCES if name.startswith("hmmt"))}
DEFAULT_LIMIT = 400


def load_bench(name: str, limit: int | None = None, seed: int = 0, file: Path | None = None) -> list[Bench]:
    """A benchmark, or the members of a group of them.

    Args:
        name: `ledger` or `hmmt` (groups), a member such as `ledger-h1`, a name of `hub.SOURCES` such as
            `aime24`, or a JSONL file.
        limit: the number of problems of each; `ledger` draws 400 unless told otherwise.
        seed: which problems, where they are drawn at random.
        file: a JSONL file that holds the problems of a benchmark of `hub.SOURCES`.

    Raises:
        UserError: no such benchmark, or its problems cannot be read.
    """
    if limit is not None and limit < 1:
        raise UserError("--limit is the number of problems, at least 1")
    if file is not None and name not in SOURCES:
        raise UserError(f"--bench-file holds the problems of a benchmark such as aime24, not of {name}")
    if name.endswith(".jsonl"):
        return [local(Path(name), limit)]
    if name not in {*GROUPS, *LEDGERS, *SOURCES}:
        known = ", ".join([*GROUPS, *LEDGERS, *SOURCES])
        raise UserError(f"no bench {name!r}: choose from {known}, or give a .jsonl file")
    return [
        ledger(LEDGERS[member], limit or DEFAULT_LIMIT, seed) if member in LEDGERS else contest(member, limit, file)
        for member in GROUPS.get(name, (name,))
    ]


def bench_size(name: str) -> tuple[int, int]:
    """Problems and repetitions of one benchmark, without reading it from the hub.

    Raises:
        UserError: no such benchmark.
    """
    if name in LEDGERS:
        return DEFAULT_LIMIT, 1
    if name not in SOURCES and not name.endswith(".jsonl"):
        raise UserError(f"no bench {name!r}: choose from {', '.join([*LEDGERS, *SOURCES])}, or give a .jsonl file")
    size = SOURCES[name].size if name in SOURCES else len(read_problems(Path(name)))
    return size, protocol(size).repetitions


__all__ = [
    "GROUPS",
    "LEDGERS",
    "SOURCES",
    "Bench",
    "Grade",
    "Harness",
    "Problem",
    "Protocol",
    "bench_size",
    "final_text",
    "load_bench",
]
