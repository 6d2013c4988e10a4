"""Recording of a run in progress, and writing of its folder when it finishes."""

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ghosttrace.errors import RunWarning
from ghosttrace.runs.figures import write_figure
from ghosttrace.runs.folder import as_json, open_run_folder, read_json, write_json
from ghosttrace.runs.record_log import RecordLog
from ghosttrace.runs.records import RecordKey, RecordLayout, Records
from ghosttrace.runs.result import RunResult
from ghosttrace.runs.samples import RecordedSamples, StoredSamples

Result = TypeVar("Result", bound=RunResult)


@dataclass(frozen=True)
class RunWriter:
    """Writer of a run in progress.

    Attributes:
        configuration: the content of run.json.
        records: the samples recorded so far.
        scratch: a folder for temporary files of the run.
        folder: the run folder; None if the run is kept in memory.
    """

    configuration: Mapping[str, Any]
    records: Records
    scratch: Path
    folder: Path | None

    def finish(
        self,
        result_class: type[Result],
        order: Sequence[RecordKey],
        valid: bool,
        rows: Sequence[dict[str, Any]],
        **more: Any,
    ) -> Result:
        """Write summary.json, the figures and samples.parquet, in this order, and return the result.

        A run counts as unfinished while samples.jsonl exists, so the samples are written last.

        Args:
            result_class: class of the result.
            order: keys of all samples, in the order of the plan.
            valid: whether every control passed.
            rows: the rows of `results`, as JSON values.
            more: further entries of summary.json, including `failures`.

        Warns:
            RunWarning: samples that were computed again have a different result.
        """
        if self.records.changed_on_resume:
            count = len(self.records.changed_on_resume)
            message = f"{count} sample(s) differ after their batch was computed again: the first results are used"
            warnings.warn(message, RunWarning, stacklevel=2)
        changed = [list(key) for key in self.records.changed_on_resume]
        command = self.configuration["command"]
        summary = as_json(
            {"command": command, "valid": valid, "changed_on_resume": changed, **more, "results": list(rows)}
        )
        result = result_class(self.configuration, summary, RecordedSamples(self.records, order), self.folder)
        if self.folder is None or not isinstance(self.records, RecordLog):
            return result
        write_json(self.folder / "summary.json", summary)
        for name, draw in result.figures().items():
            write_figure(self.folder, name, draw())
        self.records.finish(order, self.folder / "samples.parquet")
        return result_class(self.configuration, summary, StoredSamples(self.folder / "samples.parquet"), self.folder)


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder)


@contextmanager
def begin_run(
    out: str | Path | None, resume: str | Path | None, configuration: Mapping[str, Any], layout: RecordLayout
) -> Iterator[RunWriter]:
    """Start a new run or resume an unfinished one.

    Args:
        out: folder of a new run; if None, the run is kept in memory, with a temporary folder for scratch files.
        resume: folder of an unfinished run to resume.
        configuration: everything that determines the run, including `command` and `model`.
        layout: columns and key of the rows.

    Yields:
        The writer of the run.

    Raises:
        UserError: the folder cannot be used, or the run cannot be resumed.
    """
    configuration = as_json(configuration)
    if out is None and resume is None:
        with tempfile.TemporaryDirectory(prefix="ghosttrace-") as scratch:
            yield RunWriter(configuration, Records(layout), Path(scratch), None)
        return
    with open_run_folder(_path(out), _path(resume), configuration) as folder:
        recorded = read_json(folder / "run.json")  # for a resumed run, the configuration it was started with
        log = RecordLog(folder / "samples.jsonl", layout)
        try:
            yield RunWriter(recorded, log, folder, folder)
        finally:
            log.close()
