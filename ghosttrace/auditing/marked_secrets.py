"""Secrets that a user has marked in traces. They occur in a block, and the retained text must not contain them.

The marks are a JSONL file with one secret per line: `trace` (name of the trace), `block` (number of the block, from 0),
`text` (the secret as spelled in the block), and optionally `label`, which joins several texts into one class. The
default label is `text`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghosttrace.data.spans import decode, token_range
from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class ExcludedSecret:
    """A marked secret that cannot be audited, with the name of its trace and the reason."""

    trace: str
    reason: str


def read_marks(path: Path) -> list[dict[str, Any]]:
    """Read a file of marked secrets.

    Returns:
        One dict per secret, with the keys `trace`, `block`, `text` and optionally `label`.

    Raises:
        UserError: The file cannot be read, a line is invalid, or the file is empty.
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
            raise UserError(f"{path}, line {number} is not valid JSON: {error}") from error
        is_valid = isinstance(row, dict) and isinstance(row.get("trace"), str) and isinstance(row.get("text"), str)
        if not is_valid or not row["text"] or type(row.get("block")) is not int or row["block"] < 0:
            raise UserError(
                f'{path}, line {number} is invalid: give "trace" and "text" as strings and "block" as an integer'
            )
        rows.append(row)
    if not rows:
        raise UserError(f"{path} marks no secrets: give one per line")
    return rows


def marked_task(
    traces: Sequence[TokenTrace], checkpoint: Checkpoint, rows: Sequence[dict[str, Any]], hops: int
) -> tuple[Task, list[ExcludedSecret]]:
    """Build a task with one sample for every marked secret that occurs only in its block.

    Args:
        traces: Traces in which the secrets are marked.
        checkpoint: Checkpoint with the tokenizer and the markup.
        rows: Marked secrets, as returned by `read_marks`.
        hops: Number of blocks that must follow the secret's block. Tokens after the last one's memento are cut off.

    Returns:
        A task with one target, whose classes are the labels, and the excluded secrets.

    Raises:
        UserError: All secrets are excluded, or a label occurs only once.
    """
    traces_by_name = {trace.name: trace for trace in traces}
    labelled_samples: list[tuple[str, Sample]] = []
    excluded: list[ExcludedSecret] = []
    for row in rows:
        sample = _make_sample(traces_by_name.get(row["trace"]), checkpoint, row, hops)
        if isinstance(sample, str):
            excluded.append(ExcludedSecret(row["trace"], sample))
        else:
            labelled_samples.append((str(row.get("label", row["text"])), sample))
    labels = sorted({label for label, _ in labelled_samples})
    if not labels:
        raise UserError(f"none of {len(rows)} marked secrets can be audited: {excluded[0].trace}: {excluded[0].reason}")
    samples = tuple(
        Sample(s.ids, s.base, s.secret, s.block, s.secret_indices, (labels.index(label),))
        for label, s in labelled_samples
    )
    task = Task("marked", samples, (Target("secret", tuple(labels)),))
    task.check()
    return task, excluded


def _make_sample(trace: TokenTrace | None, checkpoint: Checkpoint, row: dict[str, Any], hops: int) -> Sample | str:
    """Return the sample of a marked secret, or the reason for excluding it."""
    if trace is None:
        return "no trace has this name"
    ids = trace.ids
    pairs = find_blocks(ids, checkpoint.markup, checkpoint.policy.require_assistant_section)
    if not 1 <= row["block"] < len(pairs) - hops:
        return f"block {row['block']} is the first block, or fewer than {hops} blocks follow it"
    pair = pairs[row["block"]]
    inside = ids[pair.start + 1 : pair.end]
    begin = decode(checkpoint.tokenizer, inside).find(row["text"])
    if begin < 0:
        return "the text does not occur in its block"
    cut_ids = ids[: pairs[row["block"] + hops].memento_end + 1]
    if row["text"] in decode(checkpoint.tokenizer, _retained_ids(cut_ids, pairs)):
        return "the retained text contains the secret"
    if row["text"] in decode(checkpoint.tokenizer, ids[: pair.start]):
        return "the secret also occurs in an earlier block"
    span = token_range(inside, range(begin, begin + len(row["text"])), checkpoint.tokenizer)
    secret_indices = tuple(pair.start + 1 + offset for offset in span)
    return Sample(cut_ids, trace.name, "", row["block"], secret_indices, ())


def _retained_ids(ids: list[int], pairs: Sequence[Any]) -> list[int]:
    """Return the token ids that remain when all blocks are erased, delimiters included."""
    erased_indices = {index for pair in pairs for index in range(pair.start + 1, pair.end)}
    return [token for index, token in enumerate(ids) if index not in erased_indices]
