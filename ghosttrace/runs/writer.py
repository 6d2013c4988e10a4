"""A run under way: its records and, once it is finished, everything that its folder holds."""

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ghosttrace.errors import RunWarning
from ghosttrace.runs.folder import as_json, open_run_folder, read_json, write_figure, write_json
from ghosttrace.runs.record_log import RecordLog
from ghosttrace.runs.records import RecordKey, RecordLayout, Records
from ghosttrace.runs.result import RunResult
from ghosttrace.runs.samples import RecordedSamples, StoredSamples

Result = TypeVar("Result", bound=RunResult)


@dataclass(frozen=True)
class RunWriter:
    """A run under way.

    Attributes:
        configuration: what run.json says.
        records: the rows taken so far.
        scratch: a folder for what need not outlast the run.
        folder: of the run; None if it is kept in memory.
    """

    configuration: Mapping[str, Any]
    records: Records
    scratch: Path
    folder: Path | None

    def finish(
        self, kind: type[Result], order: Sequence[RecordKey], valid: bool, rows: Sequence[dict[str, Any]], **more: Any
    ) -> Result:
        """Write summary.json, the figures and samples.parquet, in this order, and return the result.

        As long as samples.jsonl is there the run is unfinished, so the samples are written last.

        Args:
            kind: of result.
            order: the keys of all samples, in the order of the plan.
            valid: whether every control held.
            rows: the results, as JSON values.
            more: further entries of summary.json, `failures` among them.

        Warns:
            RunWarning: samples that were computed again came out otherwise.
        """
        if self.records.changed_on_resume:
            again = f"{len(self.records.changed_on_resume)} came out otherwise when their batch was computed again: the first stay"
            warnings.warn(again, RunWarning, stacklevel=2)
        changed = [list(key) for key in self.records.changed_on_resume]
        command = self.configuration["command"]
        summary = as_json(
            {"command": command, "valid": valid, "changed_on_resume": changed, **more, "results": list(rows)}
        )
        result = kind(self.configuration, summary, RecordedSamples(self.records, order), self.folder)
        if self.folder is None or not isinstance(self.records, RecordLog):
            return result
        write_json(self.folder / "summary.json", summary)
        for name, draw in result.figures().items():
            write_figure(self.folder, name, draw())
        self.records.finish(order, self.folder / "samples.parquet")
        return kind(self.configuration, summary, StoredSamples(self.folder / "samples.parquet"), self.folder)


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder)


@contextmanager
def begin_run(
    out: str | Path | None, resume: str | Path | None, configuration: Mapping[str, Any], layout: RecordLayout
) -> Iterator[RunWriter]:
    """Begin a run, or go on with one.

    Args:
        out: the folder of a new run; None keeps it in memory, with what it needs on the disk in a temporary folder.
        resume: the folder of a run to go on with.
        configuration: everything that decides the run, `command` and `model` among it.
        layout: of its rows.

    Raises:
        UserError: the folder cannot be used, or the run cannot be gone on with.
    """
    configuration = as_json(configuration)
    if out is None and resume is None:
        with tempfile.TemporaryDirectory(prefix="ghosttrace-") as scratch:
            yield RunWriter(configuration, Records(layout), Path(scratch), None)
        return
    with open_run_folder(_path(out), _path(resume), configuration) as folder:
        recorded = read_json(folder / "run.json")  # of a resumed run: as it was begun
        log = RecordLog(folder / "samples.jsonl", layout)
        try:
            yield RunWriter(recorded, log, folder, folder)
        finally:
            log.close()
