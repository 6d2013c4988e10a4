"""Benchmarks.

To add a generated benchmark, write a file with a function that returns a `Bench` and list it in `GENERATED_BENCHES`. To
add a data set of the Hugging Face hub, add a row to `HUB_SOURCES`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from ghosttrace.bench.agent import AGENT_BENCHES
from ghosttrace.bench.benchmark import Bench, Condition, Counterfactual, Grade, Harness, Problem, Protocol, final_text
from ghosttrace.bench.contests import HUB_SOURCES, load_contest, load_jsonl_bench, protocol, read_problems
from ghosttrace.bench.ledger import LEDGER_BENCHES
from ghosttrace.bench.livecodebench import LIVECODEBENCH, count_rows, has_livecodebench_columns, load_livecodebench
from ghosttrace.bench.reasoning_gym import DEFAULT_PROBLEMS, REASONING_GYM_BENCHES
from ghosttrace.bench.story import STORY_BENCHES
from ghosttrace.errors import UserError

GENERATED_BENCHES: dict[str, Callable[[int | None, int], Bench]] = {**LEDGER_BENCHES, **STORY_BENCHES, **AGENT_BENCHES}
"""Generated benchmarks by name: functions of (number of problems or None for the default, seed) to a `Bench`."""

SECRET_BENCHES = (*LEDGER_BENCHES, "agent-erased")
"""Names of the generated benchmarks that define secrets of their own, for probes and audits."""

BENCH_GROUPS = {
    "ledger": tuple(LEDGER_BENCHES),
    "story": tuple(STORY_BENCHES),
    "agent": tuple(AGENT_BENCHES),
    "reasoning-gym": tuple(REASONING_GYM_BENCHES),
    "hmmt": tuple(name for name in HUB_SOURCES if name.startswith("hmmt")),
}
BENCH_NAMES = (*BENCH_GROUPS, *GENERATED_BENCHES, *REASONING_GYM_BENCHES, *HUB_SOURCES, LIVECODEBENCH.name)


def load_bench(name: str, limit: int | None = None, seed: int = 0, file: Path | None = None) -> list[Bench]:
    """Load a benchmark, or all members of a group of benchmarks.

    Args:
        name: A group (a key of `BENCH_GROUPS`, such as `ledger`), a member such as `ledger-h1`, a name in
            `contests.HUB_SOURCES` such as `aime24`, `livecodebench`, or the path of a JSONL file.
        limit: Number of problems per benchmark. None means all problems; `ledger` then draws 400, others 200.
        seed: Random seed of generated problems.
        file: JSONL file with the problems of `livecodebench` or of a benchmark of `contests.HUB_SOURCES`, read instead
            of the hub.

    Returns:
        One benchmark, or one per member of the group.

    Raises:
        UserError: The benchmark does not exist or its problems cannot be read.
    """
    if limit is not None and limit < 1:
        raise UserError("--limit, the number of problems, must be at least 1")
    if file is not None and name not in (*HUB_SOURCES, LIVECODEBENCH.name):
        raise UserError(f"--bench-file holds the problems of a benchmark such as aime24, not of {name}")
    if name.endswith(".jsonl"):
        path = Path(name)
        return [
            load_livecodebench(path.stem, limit, path)
            if has_livecodebench_columns(path)
            else load_jsonl_bench(path, limit)
        ]
    if name == LIVECODEBENCH.name:
        return [load_livecodebench(name, limit, file)]
    if name not in BENCH_NAMES:
        raise UserError(f"no bench {name!r}: choose from {', '.join(BENCH_NAMES)}, or give a .jsonl file")
    generators = GENERATED_BENCHES | REASONING_GYM_BENCHES
    return [
        generators[member](limit, seed) if member in generators else load_contest(member, limit, file)
        for member in BENCH_GROUPS.get(name, (name,))
    ]


def as_benches(bench: str | Bench | Sequence[str | Bench], limit: int | None = None, seed: int = 0) -> list[Bench]:
    """Load the benchmarks that are given by name, and return `Bench` objects unchanged.

    Args:
        bench: Names (separated by commas, or a list), `Bench` objects, or a list of both.
        limit: Number of problems per loaded benchmark; see `load_bench`.
        seed: Random seed of generated problems.

    Raises:
        UserError: There are no benchmarks, two have the same name, or one cannot be loaded.
    """
    items = bench.split(",") if isinstance(bench, str) else [bench] if isinstance(bench, Bench) else bench
    loaded = [load_bench(item, limit, seed) if isinstance(item, str) else [item] for item in items]
    benches = [member for group in loaded for member in group]
    names = [member.name for member in benches]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate:
        raise UserError(f"two benchmarks are called {duplicate!r}: give each benchmark once, under a unique name")
    if not benches:
        raise UserError(f"no benchmark given: choose from {', '.join(BENCH_NAMES)}, or give a `Bench`")
    return benches


def decomposable_groups() -> list[str]:
    """Return the groups with a benchmark whose mementos omit a value that the answer needs."""
    conditions = {
        group: [GENERATED_BENCHES[name](1, 0).condition for name in members if name in GENERATED_BENCHES]
        for group, members in BENCH_GROUPS.items()
    }
    return [group for group, found in conditions.items() if any(each and each.omits_needed for each in found)]


def bench_size(name: str) -> tuple[int, int]:
    """Return the number of problems and of repetitions of a benchmark, without access to the hub.

    Raises:
        UserError: The benchmark does not exist, or its JSONL file cannot be read.
    """
    if name in GENERATED_BENCHES:
        bench = GENERATED_BENCHES[name](None, 0)
        return bench.size, bench.protocol.repetitions
    if name in REASONING_GYM_BENCHES:
        return DEFAULT_PROBLEMS, protocol(DEFAULT_PROBLEMS).repetitions
    if name == LIVECODEBENCH.name:
        return LIVECODEBENCH.size, protocol(LIVECODEBENCH.size).repetitions
    if name not in HUB_SOURCES and not name.endswith(".jsonl"):
        raise UserError(
            f"no bench {name!r}: choose from {', '.join(BENCH_NAMES[len(BENCH_GROUPS) :])}, or give a .jsonl file"
        )
    if name in HUB_SOURCES:
        size = HUB_SOURCES[name].size
    else:
        size = count_rows(Path(name)) if has_livecodebench_columns(Path(name)) else len(read_problems(Path(name)))
    return size, protocol(size).repetitions


__all__ = [
    "BENCH_GROUPS",
    "BENCH_NAMES",
    "GENERATED_BENCHES",
    "HUB_SOURCES",
    "REASONING_GYM_BENCHES",
    "SECRET_BENCHES",
    "Bench",
    "Condition",
    "Counterfactual",
    "Grade",
    "Harness",
    "Problem",
    "Protocol",
    "as_benches",
    "bench_size",
    "decomposable_groups",
    "final_text",
    "load_bench",
]
