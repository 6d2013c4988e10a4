"""Benchmarks. To add one, write a file that makes a `Bench` and name it in `GENERATED`, or add a row to `SOURCES`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ghosttrace.bench.benchmark import Bench, Grade, Harness, Problem, Protocol, final_text
from ghosttrace.bench.contests import SOURCES, contest, local, protocol, read_problems
from ghosttrace.bench.ledger import LEDGERS
from ghosttrace.errors import UserError

GENERATED: dict[str, Callable[[int | None, int], Bench]] = {**LEDGERS}
"""Benchmarks that are drawn at random: (number of problems or None, seed) to the benchmark."""

GROUPS = {"ledger": tuple(LEDGERS), "hmmt": tuple(name for name in SOURCES if name.startswith("hmmt"))}
BENCHES = (*GROUPS, *GENERATED, *SOURCES)


def load_bench(name: str, limit: int | None = None, seed: int = 0, file: Path | None = None) -> list[Bench]:
    """A benchmark, or the members of a group of them.

    Args:
        name: `ledger` or `hmmt` (groups), a member such as `ledger-h1`, a name of `contests.SOURCES` such as
            `aime24`, or a JSONL file.
        limit: the number of problems of each; `ledger` draws 400 unless told otherwise.
        seed: which problems, where they are drawn at random.
        file: a JSONL file that holds the problems of a benchmark of `contests.SOURCES`.

    Raises:
        UserError: no such benchmark, or its problems cannot be read.
    """
    if limit is not None and limit < 1:
        raise UserError("--limit is the number of problems, at least 1")
    if file is not None and name not in SOURCES:
        raise UserError(f"--bench-file holds the problems of a benchmark such as aime24, not of {name}")
    if name.endswith(".jsonl"):
        return [local(Path(name), limit)]
    if name not in BENCHES:
        raise UserError(f"no bench {name!r}: choose from {', '.join(BENCHES)}, or give a .jsonl file")
    return [
        GENERATED[member](limit, seed) if member in GENERATED else contest(member, limit, file)
        for member in GROUPS.get(name, (name,))
    ]


def as_benches(bench: str | Bench | Sequence[str | Bench], limit: int | None = None, seed: int = 0) -> list[Bench]:
    """Benchmarks by name (several names separated by commas), or as they are.

    Raises:
        UserError: there are none, two have the same name, or see `load_bench`.
    """
    given = bench.split(",") if isinstance(bench, str) else [bench] if isinstance(bench, Bench) else bench
    found = [one for this in given for one in (load_bench(this, limit, seed) if isinstance(this, str) else [this])]
    names = [one.name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"two benchmarks are called {twice!r}: give each once, and yours a name of its own")
    if not found:
        raise UserError(f"there is no benchmark: give one of {', '.join(BENCHES)}, or a `Bench`")
    return found


def bench_size(name: str) -> tuple[int, int]:
    """Problems and repetitions of one benchmark, without reading it from the hub.

    Raises:
        UserError: no such benchmark.
    """
    if name in GENERATED:
        bench = GENERATED[name](None, 0)
        return bench.size, bench.protocol.repetitions
    if name not in SOURCES and not name.endswith(".jsonl"):
        raise UserError(f"no bench {name!r}: choose from {', '.join([*GENERATED, *SOURCES])}, or give a .jsonl file")
    size = SOURCES[name].size if name in SOURCES else len(read_problems(Path(name)))
    return size, protocol(size).repetitions


__all__ = [
    "BENCHES",
    "GENERATED",
    "GROUPS",
    "SOURCES",
    "Bench",
    "Grade",
    "Harness",
    "Problem",
    "Protocol",
    "as_benches",
    "bench_size",
    "final_text",
    "load_bench",
]
