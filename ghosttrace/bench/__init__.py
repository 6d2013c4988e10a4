"""Benchmarks. To add one, write a file that makes a `Bench` and name it in `GENERATED_BENCHES`, or add a row to `HUB_SOURCES`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ghosttrace.bench.benchmark import Bench, Grade, Harness, Problem, Protocol, final_text
from ghosttrace.bench.contests import HUB_SOURCES, load_contest, load_jsonl_bench, protocol, read_problems
from ghosttrace.bench.ledger import LEDGER_BENCHES
from ghosttrace.errors import UserError

GENERATED_BENCHES: dict[str, Callable[[int | None, int], Bench]] = {**LEDGER_BENCHES}
"""Benchmarks that are drawn at random: (number of problems or None, seed) to the benchmark."""

BENCH_GROUPS = {"ledger": tuple(LEDGER_BENCHES), "hmmt": tuple(name for name in HUB_SOURCES if name.startswith("hmmt"))}
BENCH_NAMES = (*BENCH_GROUPS, *GENERATED_BENCHES, *HUB_SOURCES)


def load_bench(name: str, limit: int | None = None, seed: int = 0, file: Path | None = None) -> list[Bench]:
    """A benchmark, or the members of a group of them.

    Args:
        name: `ledger` or `hmmt` (groups), a member such as `ledger-h1`, a name of `contests.HUB_SOURCES` such as
            `aime24`, or a JSONL file.
        limit: the number of problems of each; `ledger` draws 400 unless told otherwise.
        seed: which problems, where they are drawn at random.
        file: a JSONL file that holds the problems of a benchmark of `contests.HUB_SOURCES`.

    Raises:
        UserError: no such benchmark, or its problems cannot be read.
    """
    if limit is not None and limit < 1:
        raise UserError("--limit is the number of problems, at least 1")
    if file is not None and name not in HUB_SOURCES:
        raise UserError(f"--bench-file holds the problems of a benchmark such as aime24, not of {name}")
    if name.endswith(".jsonl"):
        return [load_jsonl_bench(Path(name), limit)]
    if name not in BENCH_NAMES:
        raise UserError(f"no bench {name!r}: choose from {', '.join(BENCH_NAMES)}, or give a .jsonl file")
    return [
        GENERATED_BENCHES[member](limit, seed) if member in GENERATED_BENCHES else load_contest(member, limit, file)
        for member in BENCH_GROUPS.get(name, (name,))
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
        raise UserError(f"there is no benchmark: give one of {', '.join(BENCH_NAMES)}, or a `Bench`")
    return found


def bench_size(name: str) -> tuple[int, int]:
    """Problems and repetitions of one benchmark, without reading it from the hub.

    Raises:
        UserError: no such benchmark.
    """
    if name in GENERATED_BENCHES:
        bench = GENERATED_BENCHES[name](None, 0)
        return bench.size, bench.protocol.repetitions
    if name not in HUB_SOURCES and not name.endswith(".jsonl"):
        raise UserError(
            f"no bench {name!r}: choose from {', '.join([*GENERATED_BENCHES, *HUB_SOURCES])}, or give a .jsonl file"
        )
    size = HUB_SOURCES[name].size if name in HUB_SOURCES else len(read_problems(Path(name)))
    return size, protocol(size).repetitions


__all__ = [
    "BENCH_GROUPS",
    "BENCH_NAMES",
    "GENERATED_BENCHES",
    "HUB_SOURCES",
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
