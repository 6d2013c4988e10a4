"""Rows: traces on their way through the stages, one JSON object each."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ghosttrace.data.read import iter_records
from ghosttrace.errors import UserError
from ghosttrace.pipeline.files import committed_text


class RowError(Exception):
    """Row that cannot go on; the message is the reason with which it is set aside.

    Attributes:
        stage: name of the stage that raised it.
    """

    stage = ""


@dataclass(frozen=True)
class Memento:
    """A memento with what was found about it.

    Attributes:
        text: the memento.
        tokens: its number of tokens.
        problems: what code found wrong with it, such as a number that its block lacks.
        rubric: points by part of the rubric; empty before it was judged.
        feedback: what the judge asks to change.
        ghost_bits: the bits that its text leaves out and the model goes on to use, if they were measured.
    """

    text: str
    tokens: int
    problems: tuple[str, ...] = ()
    rubric: Mapping[str, int] = field(default_factory=dict)
    feedback: str = ""
    ghost_bits: float | None = None

    @property
    def score(self) -> int:
        """Sum of the points, from 0 to 10."""
        return sum(self.rubric.values())


@dataclass(frozen=True)
class Certificate:
    """Proof that no other segmentation within the limits is better.

    Attributes:
        objective: the value of the chosen segmentation.
        bound: upper bound for every other one; equal to `objective` up to rounding.
        slopes: number of penalties on unevenness (the multipliers mu) for which all segmentations were maximised.
        spread_weight: lambda in the objective.
        min_tokens, max_tokens: limits of a block's length; None is unlimited.
        min_blocks, max_blocks: limits of the number of blocks.
    """

    objective: float
    bound: float
    slopes: int
    spread_weight: float
    min_tokens: int
    max_tokens: int | None
    min_blocks: int
    max_blocks: int | None


@dataclass(frozen=True)
class Row:
    """A trace with everything that the stages have added to it so far.

    Attributes:
        task_id: unique name of the trace.
        problem: the user's message.
        thought: the chain of thought, without think tags.
        answer: the text after it.
        domain, source, difficulty: copied from the seed trace.
        sentences: the chain of thought in sentences (`split`).
        sentence_tokens: number of tokens of each sentence.
        boundary_scores: score of the boundary after each sentence but the last, from 0 to 3 (`score`).
        blocks: first and last sentence of each block (`segment`).
        certificate: proof that the segmentation is the best.
        drafts: for each block a memento that was not judged yet, or None (`compress`).
        mementos: for each block the best memento so far, or None (`judge`).
        ghost_bits: for each block the bits that the text of its draft, or of its memento, leaves out and the model goes
            on to use (`--seal-check`).
    """

    task_id: str
    problem: str
    thought: str
    answer: str
    domain: str | None = None
    source: str | None = None
    difficulty: float | None = None
    sentences: tuple[str, ...] = ()
    sentence_tokens: tuple[int, ...] = ()
    boundary_scores: tuple[float, ...] = ()
    blocks: tuple[tuple[int, int], ...] = ()
    certificate: Certificate | None = None
    drafts: tuple[Memento | None, ...] = ()
    mementos: tuple[Memento | None, ...] = ()
    ghost_bits: tuple[float, ...] = ()

    @property
    def block_texts(self) -> list[str]:
        """The text of each block."""
        return ["".join(self.sentences[first : last + 1]) for first, last in self.blocks]

    @property
    def block_tokens(self) -> list[int]:
        """The number of tokens of each block, as the sum over its sentences."""
        return [sum(self.sentence_tokens[first : last + 1]) for first, last in self.blocks]


ROW = TypeAdapter(Row)


@dataclass(frozen=True)
class SetAside:
    """A trace that did not pass a stage.

    Attributes:
        task_id: name of the trace.
        stage: name of the stage.
        reason: why it did not pass, as `category` or `category: details`.
    """

    task_id: str
    stage: str
    reason: str


def read_rows(source: str | Path) -> Iterator[Row]:
    """Yield the rows that a stage has written.

    Raises:
        UserError: the file cannot be read, or a line is no such row.
    """
    for number, record in enumerate(iter_records(source), 1):
        try:
            yield ROW.validate_python(record)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{source}, row {number}, is no row of ghosttrace data ({place}: {first['msg']}): "
                "start with ghosttrace data select"
            ) from error


def row_line(row: Row) -> str:
    """Return a row as a line of JSON."""
    return ROW.dump_json(row).decode() + "\n"


def write_set_aside(path: Path, set_aside: Iterable[SetAside]) -> None:
    """Write the traces that were set aside as JSONL."""
    with committed_text(path) as write:
        for item in set_aside:
            write(json.dumps(asdict(item), ensure_ascii=False) + "\n")


def count_reasons(set_aside: Iterable[SetAside]) -> list[dict[str, Any]]:
    """Return the number of traces set aside by stage and category of the reason."""
    counts = Counter((item.stage, item.reason.partition(":")[0]) for item in set_aside)
    return [{"stage": stage, "reason": reason, "count": count} for (stage, reason), count in sorted(counts.items())]
