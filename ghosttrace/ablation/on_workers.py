"""Samples of an ablation from the workers of a pool, group by group."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ghosttrace.ablation.backend import Backend
from ghosttrace.ablation.collect import BenchArm, SampleWriter
from ghosttrace.ablation.samples import SAMPLE_TABLE
from ghosttrace.model.pool import ModelPool
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.runs.records import Records


@dataclass
class GroupWorker:
    """Function that generates one group of samples on a worker, whose engine it starts at the first.

    Attributes:
        bench_arms: All bench arms of the run.
        batch_size: Number of rows decoded together.
        group_size: Number of samples in a group, see `ghosttrace.ablation.collect`.
        backend: Engine that generates the samples.
    """

    bench_arms: Sequence[BenchArm]
    batch_size: int
    group_size: int
    backend: Backend
    _write: SampleWriter | None = field(default=None, init=False)
    _engine: ExitStack | None = field(default=None, init=False)

    def __call__(self, unit: tuple[int, int]) -> list[dict[str, Any]]:
        """Return the rows of a group, given the numbers of its bench arm and of the group."""
        if self._write is None:
            self._engine = ExitStack()  # open as long as the worker lives
            self._write = self._engine.enter_context(self.backend.open(self.bench_arms, self.batch_size))
        records = Records(SAMPLE_TABLE)
        self.bench_arms[unit[0]].run_group(unit[1], records, self.group_size, self._write)
        return [records.get(key) for key in records.keys()]  # noqa: SIM118

    def unfinished(self, records: Records) -> list[tuple[int, int]]:
        """Return the numbers of all groups with samples that are not recorded."""
        units = []
        for number, bench_arm in enumerate(self.bench_arms):
            keys = bench_arm.keys
            groups = [keys[begin : begin + self.group_size] for begin in range(0, len(keys), self.group_size)]
            units += [(number, i) for i, group in enumerate(groups) if any(key not in records for key in group)]
        return units


def collect_from_workers(
    pool: ModelPool, worker: GroupWorker, records: Records, progress: Progress = no_progress
) -> None:
    """Generate all samples that are not recorded yet, and record each group as soon as it is finished.

    Args:
        pool: The workers.
        worker: What each of them does.
        records: Storage of the samples.
        progress: Called with (benchmark and arm, samples done, samples in total).
    """
    units, total = worker.unfinished(records), sum(len(bench_arm.keys) for bench_arm in worker.bench_arms)
    for number, rows in pool.map(worker, units):
        for row in rows:
            records.add(row)
        bench_arm = worker.bench_arms[units[number][0]]
        progress(f"{bench_arm.bench.name} · {bench_arm.arm.name}", len(records), total)
