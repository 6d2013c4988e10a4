"""Rows of a leaderboard: measurements of the same subject joined, and ranked among what is comparable."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from ghosttrace.leaderboards.columns import KINDS, SCHEMA
from ghosttrace.leaderboards.measurements import NO_DEFENCE, Measurement, Subject

Row = Mapping[str, Any]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Ranking:
    """A ranking by one estimate.

    Attributes:
        name: column of the estimate; its interval is in the columns `_low` and `_high`.
        kind: command that measures it.
        better: whether an interval (low, high) lies wholly on the better side of another one.
    """

    name: str
    kind: str
    better: Callable[[Interval, Interval], bool]


RANKINGS = (
    Ranking("accuracy", "ablate", lambda one, other: one[0] > other[1]),
    Ranking("leak", "audit", lambda one, other: one[1] < other[0]),
)


def rows_of(measurements: Iterable[Measurement]) -> list[dict[str, Any]]:
    """Return the rows of a leaderboard, sorted by benchmark, then by rank, then by name.

    Args:
        measurements: measurements of all runs, in any order.
    """
    by_subject: dict[Subject, list[Measurement]] = {}
    for measurement in measurements:
        by_subject.setdefault(measurement.subject, []).append(measurement)
    joined = [part for same in by_subject.values() for part in join(same)]
    rows = [_row(part) for part in joined]
    for ranking in RANKINGS:
        _rank(ranking, joined, rows)
    return sorted(rows, key=_sort_key)


def join(measurements: Sequence[Measurement]) -> list[list[Measurement]]:
    """Return the measurements of one subject that share a row.

    Runs that measured the same with the same numbers count once, and measurements of different kinds are joined. If
    valid runs measured the same with different numbers, nothing is joined: it would be arbitrary which of them the
    others belong to. The measurements of an invalid run are joined with no others.

    Args:
        measurements: measurements of one subject.
    """
    equal: list[list[Measurement]] = []
    for measurement in measurements:
        same = (part for part in equal if _is_repetition(part[0], measurement))
        part = next(same, None)
        if part is None:
            equal.append([measurement])
        else:
            part.append(measurement)
    valid = [part for part in equal if part[0].values["valid"]]
    kinds = [part[0].source.kind for part in valid]
    if not valid or len(set(kinds)) < len(kinds):
        return equal
    return [[measurement for part in valid for measurement in part], *(part for part in equal if part not in valid)]


def _is_repetition(one: Measurement, other: Measurement) -> bool:
    """Return whether two runs measured the same under the same conditions, with the same numbers."""
    return (one.source.kind, one.conditions, one.values) == (other.source.kind, other.conditions, other.values)


def _row(part: Sequence[Measurement]) -> dict[str, Any]:
    """Return the row of joined measurements; if the name of the model differs between runs, it has all of them."""
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row |= asdict(part[0].subject)
    for measurement in part:
        row |= measurement.values
    for name in part[0].model:
        row[name] = ", ".join(sorted({measurement.model[name] for measurement in part}))
    sources = {measurement.source for measurement in part}
    row["runs"] = [asdict(s) for s in sorted(sources, key=lambda s: (KINDS.index(s.kind), s.name, str(s.command)))]
    return row


def _rank(ranking: Ranking, joined: Sequence[Sequence[Measurement]], rows: Sequence[dict[str, Any]]) -> None:
    """Add the columns `_rank` and `_ranked`: 1 plus the number of rows that are better, and the number compared.

    A row is better if its whole interval is. Rows are compared if their runs are valid and were measured on the same
    benchmark under the same conditions.
    """
    compared: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for part, row in zip(joined, rows, strict=True):
        conditions = next((each.conditions for each in part if each.source.kind == ranking.kind), None)
        if conditions is not None and row["valid"] and row[ranking.name] is not None:
            compared.setdefault((row["benchmark"], conditions), []).append(row)
    for group in compared.values():
        intervals = [_interval(row, ranking.name) for row in group]
        for row, own in zip(group, intervals, strict=True):
            row[f"{ranking.name}_rank"] = 1 + sum(ranking.better(other, own) for other in intervals)
            row[f"{ranking.name}_ranked"] = len(group)


def _interval(row: Row, name: str) -> Interval:
    """Return the interval of an estimate; ends that are not recorded are infinite."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return -inf if low is None else low, inf if high is None else high


def _sort_key(row: Row) -> tuple[Any, ...]:
    """Sort by benchmark, then by ranks, then by names, invalid rows last; the order of the runs has no effect."""
    ranks = [inf if row[f"{ranking.name}_rank"] is None else row[f"{ranking.name}_rank"] for ranking in RANKINGS]
    names = [row["model"], row["model_sha256"], row["law"], row["defence"] != NO_DEFENCE, row["defence"]]
    return row["benchmark"], not row["valid"], *ranks, *names, [str(row[name]) for name in SCHEMA.names]
