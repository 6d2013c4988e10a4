"""Secrets that a user has marked in traces: they stand in a block, and what stays must not determine them.

A JSONL file, a line a secret: `trace` (its name), `block` (counted from 0), `text` (as it stands in the
block), and `label` where several texts are the same secret; `text` is its own label otherwise.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.natural import token_range
from ghosttrace.probing.planting import decode


@dataclass(frozen=True)
class ExcludedSecret:
    """A secret that cannot be audited, and why."""

    trace: str
    reason: str


def read_marks(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of marks.

    Raises:
        UserError: the file cannot be read, or a line is not such a row; the line is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: give a JSONL file of secrets") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is no JSON: {error}") from error
        fits = isinstance(row, dict) and isinstance(row.get("trace"), str) and isinstance(row.get("text"), str)
        if not fits or not row["text"] or type(row.get("block")) is not int or row["block"] < 0:
            raise UserError(f'{path}, line {number}: give "trace" and "text" as strings and "block" as a number from 0')
        rows.append(row)
    if not rows:
        raise UserError(f"{path} marks no secrets: give one a line")
    return rows


def marked_task(
    traces: Sequence[TokenTrace], checkpoint: Checkpoint, rows: Sequence[dict[str, Any]], hops: int
) -> tuple[Task, list[ExcludedSecret]]:
    """A sample for every secret that stands in its block alone.

    Args:
        traces: where they stand.
        checkpoint: whose tokenizer and markup to use.
        rows: of `read_marks`.
        hops: how many blocks after it are needed; what follows the last one's memento is dropped.

    Returns:
        A task with one target, whose classes are the labels; and the secrets left out.

    Raises:
        UserError: none is left, or a label occurs once.
    """
    named = {trace.name: trace for trace in traces}
    found: list[tuple[str, Sample]] = []
    excluded: list[ExcludedSecret] = []
    for row in rows:
        sample = _sample(named.get(row["trace"]), checkpoint, row, hops)
        if isinstance(sample, str):
            excluded.append(ExcludedSecret(row["trace"], sample))
        else:
            found.append((str(row.get("label", row["text"])), sample))
    labels = sorted({label for label, _ in found})
    if not labels:
        raise UserError(f"none of {len(rows)} marked secrets can be audited: {excluded[0].trace}: {excluded[0].reason}")
    samples = tuple(
        Sample(s.ids, s.base, s.secret, s.block, s.secret_indices, (labels.index(label),)) for label, s in found
    )
    task = Task("marked", samples, (Target("secret", tuple(labels)),))
    task.check()
    return task, excluded


def _sample(trace: TokenTrace | None, checkpoint: Checkpoint, row: dict[str, Any], hops: int) -> Sample | str:
    """The sample, or why there is none."""
    if trace is None:
        return "there is no such trace"
    ids = trace.ids
    pairs = find_blocks(ids, checkpoint.markup, checkpoint.policy.require_assistant_section)
    if not 1 <= row["block"] < len(pairs) - hops:
        return f"block {row['block']} is the first, or has not {hops} more after it"
    pair = pairs[row["block"]]
    inside = ids[pair.start + 1 : pair.end]
    at = decode(checkpoint.tokenizer, inside).find(row["text"])
    if at < 0:
        return "the text does not stand in its block"
    cut = ids[: pairs[row["block"] + hops].memento_end + 1]
    if row["text"] in decode(checkpoint.tokenizer, _retained(cut, pairs)):
        return "the text that is retained holds the secret"
    if row["text"] in decode(checkpoint.tokenizer, ids[: pair.start]):
        return "the secret stands in an earlier block too"
    span = token_range(inside, range(at, at + len(row["text"])), checkpoint.tokenizer)
    return Sample(cut, trace.name, "", row["block"], tuple(pair.start + 1 + place for place in span), ())


def _retained(ids: list[int], pairs: Sequence[Any]) -> list[int]:
    """What is left of a trace when all its blocks are erased."""
    gone = {place for pair in pairs for place in range(pair.start + 1, pair.end)}
    return [token for place, token in enumerate(ids) if place not in gone]
