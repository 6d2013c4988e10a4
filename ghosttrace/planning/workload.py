"""The size of a planned run: the option that sets it, and how much work it is.

Work is counted in units that cost the same: traces, problems, batches or optimiser steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from math import gcd
from pathlib import Path
from typing import Any

from ghosttrace.bench import Bench, as_benches, load_bench
from ghosttrace.data.read import iter_records, reference_responses
from ghosttrace.planning.command import Command

ROWS_PER_BATCH = 128
"""Rows that `ablate` decodes together unless `--batch-size` says otherwise; on a GPU it may be fewer."""

MINIMUM = {"probe": 100, "audit": 100}
"""Smallest sizes at which an instrument is worth calibrating: below, fits are unlike those of any real run."""


@dataclass(frozen=True)
class Source:
    """One source of a run's problems or traces.

    Attributes:
        available: How many it has.
        repeats: How often each is used.
        name: Name of the benchmark, if it is one.
    """

    available: int
    repeats: int = 1
    name: str = ""


@dataclass(frozen=True)
class Workload:
    """Size of a run.

    Attributes:
        option: Option that sets the size.
        size: The size that is planned.
        unit: What `amount` counts.
        sources: Sources of which each contributes up to `size`.
        rows: Rows that are computed together, so that a part of them costs as much as all.
        step: Sizes of calibration runs are multiples of it, so that their batches are full.
        minimum: Smallest size of a calibration run.
    """

    option: str
    size: int
    unit: str
    sources: tuple[Source, ...]
    rows: int = 1
    step: int = 1
    minimum: int = 1

    def amount(self, size: int) -> int:
        """Return the units of work at a size."""
        counts = (min(size, source.available) * source.repeats for source in self.sources)
        return sum(-(-count // self.rows) for count in counts)


def workload(command: Command) -> Workload:
    """Return the size of a command that trains nothing.

    Raises:
        UserError: The size is no number, or a benchmark or a file that the command names cannot be read.
    """
    return WORKLOADS[command.instrument](command)


def _ablate(command: Command) -> Workload:
    limit, seed = command.integer("--limit"), _seed(command)
    bench_file, name = command.value("--bench-file"), command.value("--bench") or _default("ablate", "bench")
    loaded = load_bench(name, limit, seed, None if bench_file is None else Path(bench_file))
    repetitions = command.integer("--repetitions")
    sources = tuple(
        Source(len(bench.problems), bench.protocol.repetitions if repetitions is None else repetitions, bench.name)
        for bench in loaded
    )
    rows = 1 if command.value("--backend") == "vllm" else command.integer("--batch-size") or ROWS_PER_BATCH
    step = max(rows // gcd(rows, source.repeats) for source in sources)
    size = max(source.available for source in sources)
    return Workload("--limit", size, "problems" if rows == 1 else "batches per arm", sources, rows, step, step)


def _traces(command: Command) -> Workload:
    """Return the workload of `bits` and `patch`, whose traces are read from files or made from a benchmark."""
    limit = command.integer("--limit") or int(_default(command.instrument, "limit"))
    files = command.values("--traces")
    counts = [_count(file, limit) for file in files] or [
        len(bench.problems) for bench in as_benches(_bench(command), limit, _seed(command))
    ]
    return Workload("--limit", max(counts), "traces", tuple(map(Source, counts)))


def _secrets(command: Command) -> Workload:
    """Return the workload of `probe` and `audit`: generated problems, planted secrets, or traces with attributes."""
    from ghosttrace.probing.tasks import is_natural

    minimum, files = MINIMUM[command.instrument], command.values("--traces")
    limit = command.integer("--limit")
    samples = command.integer("--samples") or int(_default(command.instrument, "samples"))
    planted = not (is_natural(command.value("--secret") or "") or command.has("--secrets"))
    counts = [_count(file, limit) for file in files]
    if not files:
        return Workload("--samples", samples, "traces", (Source(samples),), minimum=minimum)
    if planted:
        total = sum(counts)
        return Workload("--samples", samples, "traces", (Source(samples, total),), minimum=max(1, minimum // total))
    return Workload("--limit", max(counts), "traces", tuple(map(Source, counts)), minimum=minimum)


def _bench(command: Command) -> str | Bench | Sequence[str | Bench]:
    return command.value("--bench") or _default(command.instrument, "bench")


def _seed(command: Command) -> int:
    seed = command.value("--seed")
    return int(seed) if seed is not None and seed.isdigit() else 0


def _default(instrument: str, argument: str) -> Any:
    """Return the default of an argument of an instrument, which is the same in Python and on the command line."""
    import ghosttrace

    default = signature(getattr(ghosttrace, instrument)).parameters[argument].default
    return ",".join(default) if isinstance(default, tuple | list) else default


def _count(source: str, limit: int | None) -> int:
    """Return how many traces a file, a run folder or a data set on the hub gives, at most `limit`."""
    if Path(source).is_dir():
        found = len(reference_responses(Path(source)))
        return found if limit is None else min(found, limit)
    count = 0
    for count, _ in enumerate(iter_records(source), 1):
        if count == limit:
            break
    return count


WORKLOADS: dict[str, Callable[[Command], Workload]] = {
    "ablate": _ablate,
    "bits": _traces,
    "patch": _traces,
    "probe": _secrets,
    "audit": _secrets,
}
