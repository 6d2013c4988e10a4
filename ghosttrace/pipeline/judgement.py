"""Judgement of mementos on a rubric of six parts, with feedback; the best draft of each block is kept."""

from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ghosttrace.pipeline.answers import ask
from ghosttrace.pipeline.client import Client, Message
from ghosttrace.pipeline.process import all_of
from ghosttrace.pipeline.prompt_files import load_prompt
from ghosttrace.pipeline.rows import Memento, Row, RowError

JUDGE_TOKENS = 1024  # of an answer


class Judgement(BaseModel):
    """The points of a memento, 10 in all, and what to change (arXiv 2604.09852)."""

    model_config = ConfigDict(extra="forbid")
    formulas: Annotated[int, Field(ge=0, le=3)]
    values: Annotated[int, Field(ge=0, le=2)]
    methods: Annotated[int, Field(ge=0, le=2)]
    validation: Annotated[int, Field(ge=0, le=1)]
    no_hallucination: Annotated[int, Field(ge=0, le=1)]
    result_first: Annotated[int, Field(ge=0, le=1)]
    feedback: str


async def judge(row: Row, client: Client) -> Row:
    """Judge the drafts of a row, and keep the better of draft and best memento so far of each block.

    Args:
        row: a row with drafts; with `ghost_bits`, they are shown to the judge.
        client: client of the endpoint.

    Raises:
        RowError: the row has no mementos, or a draft was not judged.
    """
    if not row.drafts and not row.mementos:
        raise RowError("no mementos: run ghosttrace data compress first")
    if not row.drafts:
        return row
    judged = await all_of(_judge_draft(row, client, index) for index in range(len(row.drafts)))
    best = tuple(better(old, new) for old, new in zip(row.mementos, judged, strict=True))
    measured = [memento.ghost_bits for memento in best if memento is not None]
    ghost_bits = tuple(bits for bits in measured if bits is not None)
    return replace(row, drafts=(), mementos=best, ghost_bits=ghost_bits if len(ghost_bits) == len(best) else ())


def better(old: Memento | None, new: Memento | None) -> Memento | None:
    """Return the memento without problems, or with more points, or the older one.

    If the older one stays, it gets the feedback on the rewrite as well, so that the next one is not the same.
    """
    if old is None or new is None:
        return old or new
    if (not new.problems, new.score) > (not old.problems, old.score):
        return new
    return replace(old, feedback=f"{old.feedback} A rewrite was no better: {' '.join([*new.problems, new.feedback])}")


def judge_messages(row: Row, index: int, draft: Memento) -> list[Message]:
    """Return the messages that ask for the judgement of a draft."""
    findings = [f"Found by code: {problem}." for problem in draft.problems]
    if row.ghost_bits:
        findings.append(
            f"Found with a model: without the block, the text after it loses {row.ghost_bits[index]:.3f} bits a token. "
            "A high number means that this memento omits what is used later."
        )
    values = {"problem": row.problem, "block": row.block_texts[index].strip(), "memento": draft.text}
    return load_prompt("judge").fill(values | {"findings": "\n".join(findings)})


async def _judge_draft(row: Row, client: Client, index: int) -> Memento | None:
    draft = row.drafts[index]
    if draft is None:
        return None
    answer = await ask(client, "judge", judge_messages(row, index, draft), Judgement, JUDGE_TOKENS)
    points = answer.model_dump()
    ghost_bits = row.ghost_bits[index] if row.ghost_bits else None
    return replace(draft, feedback=points.pop("feedback"), rubric=points, ghost_bits=ghost_bits)
