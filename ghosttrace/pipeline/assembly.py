"""Assembly of annotated rows into training rows with delimiters, in the columns of OpenMementos."""

from typing import Any

import pyarrow as pa

from ghosttrace.law.markup import DELIMITERS
from ghosttrace.pipeline.check_response import ProblemError, parse_response
from ghosttrace.pipeline.compression import special_token
from ghosttrace.pipeline.rows import Memento, Row, RowError
from ghosttrace.pipeline.settings import Quality

DEFAULT_COLUMNS = ("problem", "response", "domain", "source", "difficulty")
SCHEMA = pa.schema(
    {
        "problem": pa.string(),
        "response": pa.string(),
        "domain": pa.string(),
        "source": pa.string(),
        "difficulty": pa.float64(),
        "sentences": pa.list_(pa.string()),
        "blocks": pa.list_(pa.list_(pa.int64())),
        "block_summaries": pa.list_(pa.string()),
        "task_id": pa.string(),
        "sentence_tokens": pa.list_(pa.int64()),
        "boundary_scores": pa.list_(pa.float64()),
        "objective": pa.float64(),
        "objective_bound": pa.float64(),
        "spread_weight": pa.float64(),
        "memento_tokens": pa.list_(pa.int64()),
        "memento_scores": pa.list_(pa.int64()),
        "memento_problems": pa.list_(pa.list_(pa.string())),
        "avg_final_score": pa.float64(),
        "accepted": pa.bool_(),
        "ghost_bits": pa.list_(pa.float64()),
    }
)
"""Columns of the configuration `full`: those of OpenMementos, then what else is known about the row."""


def assemble(row: Row, quality: Quality) -> dict[str, Any]:
    """Return the training row of an annotated row, with the columns of `SCHEMA`.

    Args:
        row: a row with judged mementos.
        quality: when a memento is accepted; `accepted` says whether all of them are.

    Raises:
        RowError: a block has no judged memento, or the response is not of the format.
    """
    mementos = [memento for memento in row.mementos if memento is not None]
    if not row.blocks or row.certificate is None or len(mementos) != len(row.blocks):
        raise RowError("no judged memento for each block: run ghosttrace data compress and judge first")
    text = response(row, mementos)
    try:
        parse_response(text)
    except ProblemError as error:
        raise RowError(f"not of the format: {error}") from error
    found = special_token(row.problem + "\n" + text)
    if found:
        raise RowError(f"holds special tokens of a chat template: {found}")
    return {
        **{name: getattr(row, name) for name in ("problem", "domain", "source", "difficulty", "task_id")},
        "response": text,
        "sentences": list(row.sentences),
        "blocks": [list(block) for block in row.blocks],
        "block_summaries": [memento.text for memento in mementos],
        "sentence_tokens": list(row.sentence_tokens),
        "boundary_scores": list(row.boundary_scores),
        "objective": row.certificate.objective,
        "objective_bound": row.certificate.bound,
        "spread_weight": row.certificate.spread_weight,
        "memento_tokens": [memento.tokens for memento in mementos],
        "memento_scores": [memento.score for memento in mementos],
        "memento_problems": [list(memento.problems) for memento in mementos],
        "avg_final_score": sum(memento.score for memento in mementos) / len(mementos),
        "accepted": all(map(quality.accepts, mementos)),
        "ghost_bits": list(row.ghost_bits),
    }


def response(row: Row, mementos: list[Memento]) -> str:
    """Return the assistant's turn: blocks and mementos with their delimiters, then the answer."""
    block_start, block_end, summary_start, summary_end = (f"<|{name}|>" for name in DELIMITERS)
    pairs = (
        f"{block_start}{block}{block_end}{summary_start}{memento.text}{summary_end}"
        for block, memento in zip(row.block_texts, mementos, strict=True)
    )
    return f"<think>\n{''.join(pairs)}</think>\n{row.answer}"
