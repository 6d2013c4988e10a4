"""One stage over a file of rows."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ghosttrace.errors import UserError
from ghosttrace.pipeline.assembly import assemble
from ghosttrace.pipeline.calls import CallCache, StageCost
from ghosttrace.pipeline.client import Client
from ghosttrace.pipeline.dataset import DatasetWriter
from ghosttrace.pipeline.endpoint import Endpoint
from ghosttrace.pipeline.files import committed_text, locked_folder, logged, writable
from ghosttrace.pipeline.process import process
from ghosttrace.pipeline.rows import Row, RowError, SetAside, read_rows, row_line, write_set_aside
from ghosttrace.pipeline.run import seed_rows
from ghosttrace.pipeline.settings import Quality
from ghosttrace.pipeline.stages import ASKING_STAGES, Settings, local_work, row_stages
from ghosttrace.runs.progress import Progress, no_progress


@dataclass(frozen=True)
class StageResult:
    """What a stage has written.

    Attributes:
        out: file of rows, or folder of a data set.
        rows: number of rows.
        set_aside: traces that did not pass.
        costs: usage and cost of the calls kept beside the file.
        accepted: number of rows of a data set whose mementos are all accepted; None for a file of rows.
    """

    out: Path
    rows: int
    set_aside: tuple[SetAside, ...]
    costs: tuple[StageCost, ...] = ()
    accepted: int | None = None


def run_select(sources: Sequence[str | Path], out: Path, settings: Settings, limit: int | None = None) -> StageResult:
    """Select seed traces and write them as rows; see `ghosttrace.pipeline.selection`."""
    _refuse_overwriting(sources, out)
    rows, set_aside = 0, []
    with writable(out.parent), committed_text(out) as write:
        for item in seed_rows(sources, settings, limit):
            if isinstance(item, Row):
                write(row_line(item))
                rows += 1
            else:
                set_aside.append(item)
    return _finish(out, rows, set_aside)


def run_stage(
    name: str,
    source: str | Path,
    out: Path,
    settings: Settings,
    endpoint: Endpoint | None = None,
    progress: Progress = no_progress,
) -> StageResult:
    """Run a stage over a file of rows, and write the rows that pass.

    Args:
        name: `split`, `score`, `segment`, `compress` or `judge`.
        source: the file that the stage before has written.
        out: the file to write. Answers are kept in calls.sqlite beside it.
        settings: settings of the stages.
        endpoint: the endpoint, for the stages that ask.
        progress: called with (name, rows done, 0).

    Raises:
        UserError: a file cannot be used, or the endpoint cannot answer.
    """
    _refuse_overwriting([source], out)
    if name not in ASKING_STAGES or endpoint is None:
        with writable(out.parent):
            return asyncio.run(_run(name, source, out, settings, None, progress))
    with locked_folder(out.parent), logged(out.parent / "build.log"):
        cache = CallCache(out.parent / "calls.sqlite")
        try:
            return asyncio.run(_run(name, source, out, settings, Client(endpoint, cache), progress))
        finally:
            cache.close()


async def _run(
    name: str, source: str | Path, out: Path, settings: Settings, client: Client | None, progress: Progress
) -> StageResult:
    if client is not None:
        async with client:
            return await _run_stage(name, source, out, settings, client, progress)
    return await _run_stage(name, source, out, settings, None, progress)


async def _run_stage(
    name: str, source: str | Path, out: Path, settings: Settings, client: Client | None, progress: Progress
) -> StageResult:
    stage = row_stages(settings, client, local_work(settings))[name]
    rows, set_aside = 0, []
    at_once = 2 * client.endpoint.concurrency if client else 1
    with committed_text(out) as write:
        async for result in process(read_rows(source), stage, at_once):
            if isinstance(result, Row):
                write(row_line(result))
                rows += 1
            else:
                set_aside.append(result)
            progress(name, rows + len(set_aside), 0)
    return _finish(out, rows, set_aside, client.cache.costs() if client else ())


def run_assemble(source: str | Path, out: Path, quality: Quality) -> StageResult:
    """Write annotated rows as a data set with delimiters; see `ghosttrace.pipeline.assembly`."""
    set_aside = []
    with writable(out):
        with DatasetWriter(out) as writer:
            for row in read_rows(source):
                try:
                    writer.add(assemble(row, quality))
                except RowError as error:
                    set_aside.append(SetAside(row.task_id, "assemble", str(error)))
        write_set_aside(out / "set_aside.jsonl", set_aside)
    rows, accepted = sum(writer.counts[name] for name in ("full", "rejected")), writer.counts["full"]
    return StageResult(out, rows, tuple(set_aside), accepted=accepted)


def _finish(out: Path, rows: int, set_aside: list[SetAside], costs: Sequence[StageCost] = ()) -> StageResult:
    write_set_aside(out.with_suffix(".set_aside.jsonl"), set_aside)
    return StageResult(out, rows, tuple(set_aside), tuple(costs))


def _refuse_overwriting(sources: Sequence[str | Path], out: Path) -> None:
    if any(Path(source).resolve() == out.resolve() for source in sources):
        raise UserError(f"{out} would overwrite its own source: give --out another file")
