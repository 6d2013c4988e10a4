"""Samples of an ablation from the workers of a pool, batch by batch."""

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
class BatchWorker:
    """Function that generates one batch on a worker, whose engine it starts at the first.

    Attributes:
        bench_arms: All bench arms of the run.
        batch_size: Number of rows decoded together.
        backend: Engine that generates the samples.
    """

    bench_arms: Sequence[BenchArm]
    batch_size: int
    backend: Backend
    _write: SampleWriter | None = field(default=None, init=False)
    _engine: ExitStack | None = field(default=None, init=False)

    def __call__(self, unit: tuple[int, int]) -> list[dict[str, Any]]:
        """Return the rows of a batch, given the numbers of its bench arm and of the batch."""
        if self._write is None:
            self._engine = ExitStack()  # open as long as the worker lives
            self._write = self._engine.enter_context(self.backend.open(self.bench_arms))
        records = Records(SAMPLE_TABLE)
        self.bench_arms[unit[0]].run_batch(unit[1], records, self.batch_size, self._write)
        return [records.get(key) for key in records.keys()]  # noqa: SIM118


def collect_from_workers(
    pool: ModelPool,
    bench_arms: Sequence[BenchArm],
    records: Records,
    batch_size: int,
    backend: Backend,
    progress: Progress = no_progress,
) -> None:
    """Generate all samples that are not recorded yet, and record each batch as soon as it is finished.

    Args:
        pool: The workers.
        bench_arms: The bench arms to run.
        records: Storage of the samples.
        batch_size: Number of rows decoded together. The batches are those of a run without workers.
        backend: Engine that each worker starts.
        progress: Called with (benchmark and arm, samples done, samples in total).
    """
    units, total = [], sum(len(bench_arm.keys) for bench_arm in bench_arms)
    for number, bench_arm in enumerate(bench_arms):
        keys = bench_arm.keys
        batches = [keys[begin : begin + batch_size] for begin in range(0, len(keys), batch_size)]
        units += [(number, i) for i, batch in enumerate(batches) if any(key not in records for key in batch)]
    for number, rows in pool.map(BatchWorker(bench_arms, batch_size, backend), units):
        for row in rows:
            records.add(row)
        bench_arm = bench_arms[units[number][0]]
        progress(f"{bench_arm.bench.name} · {bench_arm.arm.name}", len(records), total)
