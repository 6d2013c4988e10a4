"""Secrets that a user has marked in traces. They occur in a block, and the retained text must not contain them.

The marks are a JSONL file with one secret per line: `trace` (name of the trace), `block` (number of the block, from 0),
`text` (the secret as spelled in the block), and optionally `label`, which joins several texts into one class. The
default label is `text`. Under other laws than Memento's, `block` is the number of the tool result that holds the
secret, or of the assistant's turn.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ghosttrace.data.spans import decode, token_range
from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import MementoLaw, expiry
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.places import PlaceFinder, Role
from ghosttrace.probing.tasks import secret_number


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
    traces: Sequence[TokenTrace],
    checkpoint: Checkpoint,
    rows: Sequence[dict[str, Any]],
    hops: int,
    role: Role = "tool",
) -> tuple[Task, list[ExcludedSecret]]:
    """Build a task with one sample for every marked secret that occurs only in its block.

    Args:
        traces: Traces in which the secrets are marked.
        checkpoint: Checkpoint with the tokenizer and the law.
        rows: Marked secrets, as returned by `read_marks`.
        hops: Number of blocks that must follow the secret's block. Tokens after the last one's memento are cut off.
        role: Role of the turns that hold the secrets, under other laws than Memento's.

    Returns:
        A task with one target, whose classes are the labels, and the excluded secrets.

    Raises:
        UserError: All secrets are excluded, or a label occurs only once.
    """
    finder = PlaceFinder(checkpoint, hops, role)
    traces_by_name = {trace.name: trace for trace in traces}
    labelled_samples: list[tuple[str, Sample]] = []
    excluded: list[ExcludedSecret] = []
    for row in rows:
        sample = _make_sample(traces_by_name.get(row["trace"]), finder, row)
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


def _make_sample(trace: TokenTrace | None, finder: PlaceFinder, row: dict[str, Any]) -> Sample | str:
    """Return the sample of a marked secret, or the reason for excluding it."""
    if trace is None:
        return "no trace has this name"
    checkpoint, places, number = finder.checkpoint, finder.find(trace.ids), row["block"]
    if not secret_number(checkpoint, None) <= number < len(places):
        if isinstance(checkpoint.law, MementoLaw):
            return f"block {number} is the first block, or fewer than {finder.hops} blocks follow it"
        return f"the trace has {len(places)} {finder.what}s that leave, counted from 0"
    place, tokenizer = places[number], checkpoint.tokenizer
    inside, ids = trace.ids[place.tokens.start : place.tokens.stop], trace.ids[: place.end]
    begin = decode(tokenizer, inside).find(row["text"])
    if begin < 0:
        return f"the text does not occur in its {finder.what}"
    span = token_range(inside, range(begin, begin + len(row["text"])), tokenizer)
    indices = tuple(place.tokens.start + offset for offset in span)
    if row["text"] in decode(tokenizer, _retained_ids(ids, finder, indices)):
        return "the retained text contains the secret"
    memento = isinstance(checkpoint.law, MementoLaw)
    if not memento and decode(tokenizer, inside).count(row["text"]) > 1:
        return f"the secret occurs twice in its {finder.what}"
    if row["text"] in decode(tokenizer, ids[: place.tokens.start]):
        return f"the secret also occurs {'in an earlier block' if memento else f'before its {finder.what}'}"
    return Sample(ids, trace.name, "", place.block, indices, ())


def _retained_ids(ids: Sequence[int], finder: PlaceFinder, secret_indices: Sequence[int]) -> list[int]:
    """Return the token ids that remain when all blocks are erased, delimiters included.

    Under other laws than Memento's, return those that are held when the secret has left, or come later.
    """
    law, kept = finder.checkpoint.law, np.ones(len(ids), dtype=bool)
    if not isinstance(law, MementoLaw):
        times = expiry(ids, law)
        kept = times > times[list(secret_indices)].max()
    else:
        for pair in find_blocks(ids, law.markup, law.policy.require_assistant_section):
            kept[pair.start + 1 : pair.end] = False
    return [token for token, is_kept in zip(ids, kept, strict=True) if is_kept]
