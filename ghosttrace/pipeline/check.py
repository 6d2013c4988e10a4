"""Validation of data sets with mementos, row by row: OpenMementos in both configurations, and traces in segments."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ghosttrace.data.read import iter_records, parse_trace
from ghosttrace.errors import UserError
from ghosttrace.pipeline.check_columns import FULL_COLUMNS, annotation_problems, full_problems, text_problems
from ghosttrace.pipeline.check_response import MARK, ProblemError, pair_problems, parse_response, segment_problems


@dataclass(frozen=True)
class RowProblem:
    """What is wrong with a row.

    Attributes:
        row: index of the row, from 0.
        name: its task_id or id, else its index.
        message: the problem.
    """

    row: int
    name: str
    message: str


@dataclass(frozen=True)
class CheckReport:
    """Findings on a data set.

    Attributes:
        rows: number of rows.
        blocks: number of blocks in the rows without problems.
        problems: what is wrong, in the order of the rows.
    """

    rows: int
    blocks: int
    problems: tuple[RowProblem, ...]

    @property
    def valid(self) -> bool:
        """Whether no row has a problem."""
        return not self.problems


def check_dataset(source: str | Path, limit: int | None = None) -> CheckReport:
    """Check each row of a data set.

    Args:
        source: a file or hub id, see `ghosttrace.data.read.iter_records`.
        limit: maximum number of rows.

    Raises:
        UserError: the source cannot be read, or has no rows.
    """
    rows = blocks = 0
    problems: list[RowProblem] = []
    names: dict[str, int] = {}
    for row, record in enumerate(islice(iter_records(source), limit)):
        rows += 1
        found = list(row_problems(record))
        given = (record.get("task_id") or record.get("id")) if isinstance(record, Mapping) else None
        name = str(row if given is None else given)
        if given is not None and name in names:
            found.append(f"repeats the name of row {names[name]}")
        names.setdefault(name, row)
        problems += [RowProblem(row, name, message) for message in found]
        blocks += 0 if found else len(parse_response(parse_trace(record, source).response))
    if not rows:
        raise UserError(f"{source} holds no rows: give a JSON, JSONL or Parquet file with at least one")
    return CheckReport(rows, blocks, tuple(problems))


def row_problems(record: Any) -> Iterator[str]:
    """Yield what is wrong with a row; a later check is left out if an earlier one makes it meaningless."""
    try:
        trace = parse_trace(record, "the row")
    except UserError as error:
        yield str(error).partition(":")[0]
        return
    yield from text_problems(record)
    if MARK.search(trace.problem):
        yield f"problem holds {MARK.findall(trace.problem)[0]}"
    if "response" not in record:
        found = list(segment_problems(record))
        if found:
            yield from found
            return
    try:
        pairs = parse_response(trace.response)
    except ProblemError as error:
        yield str(error)
        return
    yield from pair_problems(pairs)
    if any(record.get(name) is not None for name in FULL_COLUMNS):
        found = list(full_problems(record, pairs))
        yield from found or annotation_problems(record)
