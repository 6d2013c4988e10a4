"""Measurement of ghost bits, token by token, on fixed traces.

For every token from the first erasure on, the measure is log2 p(token | normal cache) - log2 p(token | altered cache).
Both probabilities are teacher-forced over the same trace; nothing is generated. Under `restart` the difference has two
parts: the information of the ghost channel about the following text, and the cost of a sealed cache being unfamiliar to
the model. The difference alone cannot separate the two. `placebo` is the negative control: it recomputes the same
tokens before anything is erased, and must change nothing.

A trace needs one forward pass per arm. The pass runs in chunks, so that the logits of a long trace and a large
vocabulary are never all in memory.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ghosttrace.ablation.arms import Arm, Memento
from ghosttrace.data.spans import end_of_last
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.ghost_bits.likelihood import first_measured_index, log2_probabilities
from ghosttrace.law.expiry import MementoLaw
from ghosttrace.law.law import Law
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.pool import ModelPool, map_units
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.runs.records import RecordLayout, Records

TOKEN_KINDS = ("block", "memento", "delimiter", "answer", "other")

BITS_TABLE = RecordLayout(
    pa.schema(
        {
            "source": pa.string(),
            "trace": pa.string(),
            "arm": pa.string(),
            "tokens": pa.list_(pa.int32()),
            "token_index": pa.list_(pa.int32()),
            "kind": pa.list_(pa.string()),
            "block": pa.list_(pa.int32()),
            "distance": pa.list_(pa.int32()),
            "log2p_memento": pa.list_(pa.float64()),
            "log2p_arm": pa.list_(pa.float64()),
        }
    ),
    ("source", "trace", "arm"),
)


def measured_tokens(trace: TokenTrace, law: Law, tokenizer: Any) -> pd.DataFrame:
    """Return the tokens at which arms can differ: all tokens from the first erasure on.

    Args:
        trace: the trace.
        law: which tokens leave the cache and when.
        tokenizer: tokenizer of the trace. The answer starts after the last `</think>` of the response.

    Returns:
        One row per token: `token_index`, `kind` (one of `TOKEN_KINDS`), `block` (number of mementos that end before the
        token) and `distance` (1 for the token after the last `<|summary_end|>`, 2 for the next, and so on). Under
        another law than Memento's, `block` counts the erasures before the token, `distance` is counted from the last
        one, and every kind but `answer` is `other`.
    """
    ids = np.array(trace.ids)
    token_index = np.arange(first_measured_index(trace.ids, law), len(ids))
    kind = np.full(len(ids), "other", dtype=object)
    if isinstance(law, MementoLaw):
        blocks = find_blocks(ids, law.markup, law.policy.require_assistant_section)
        for block in blocks:
            kind[block.start + 1 : block.end] = "block"
            kind[block.memento_start + 1 : block.memento_end] = "memento"
        kind[np.isin(ids, law.markup.delimiters)] = "delimiter"
        ends = np.array([block.memento_end for block in blocks], dtype=np.int64)
    else:
        ends = np.unique([erasure.expires_at - 1 for erasure in law.erasures(ids)])
    answer = end_of_last("</think>", trace.response, tokenizer)
    if answer is not None:
        kind[len(trace.prompt) + answer :] = "answer"
    n_finished = np.searchsorted(ends, token_index)
    return pd.DataFrame(
        {
            "token_index": token_index,
            "kind": kind[token_index],
            "block": n_finished,
            "distance": token_index - ends[n_finished - 1] if len(token_index) else token_index,
        }
    )


def measure(
    checkpoint: Checkpoint,
    traces: Sequence[TokenTrace],
    arms: Sequence[Arm],
    records: Records,
    batch_tokens: int = 65_536,
    progress: Progress = no_progress,
    pool: ModelPool | None = None,
) -> None:
    """Measure every trace that is not recorded yet, and add it to the records as soon as an arm is measured on it.

    Args:
        checkpoint: the model and its law.
        traces: the traces to measure.
        arms: the arms to compare with `memento`.
        records: records with layout `BITS_TABLE`; extended in place.
        batch_tokens: maximum number of tokens per batch, including padding. A batch holds traces of similar lengths.
        progress: called with ("traces", traces done, number of traces).
        pool: workers that measure; None measures here.

    Raises:
        UserError: the checkpoint cannot run one of the arms.
    """
    for arm in arms:
        arm.adapt_law(checkpoint.law)
        arm.check(checkpoint.model)
    batches = list(_batches(traces, batch_tokens))
    units = [(batch, unmeasured) for batch in batches if (unmeasured := _unmeasured(batch, arms, records))]
    done = sum(map(len, batches)) - sum(len(batch) for batch, _ in units)
    measure_unit = partial(measure_batch, checkpoint)
    for number, rows in map_units(measure_unit, units, pool):
        for row in rows:
            records.add(row)
        done += len(units[number][0])
        progress("traces", done, len(traces))


def measure_batch(checkpoint: Checkpoint, unit: tuple[Sequence[TokenTrace], Sequence[Arm]]) -> Iterator[dict[str, Any]]:
    """Measure a batch of traces under some arms, and yield a row for each arm and trace."""
    batch, arms = unit
    ids, keys = [trace.ids for trace in batch], [_key(trace) for trace in batch]
    tokens = [measured_tokens(trace, checkpoint.law, checkpoint.tokenizer) for trace in batch]
    reference = log2_probabilities(checkpoint, Memento(), ids)
    for arm in arms:
        altered = log2_probabilities(checkpoint, arm, ids, keys)
        for row, trace in enumerate(batch):
            yield _record(trace, arm.name, tokens[row], reference[row], altered[row])


def _unmeasured(batch: Sequence[TokenTrace], arms: Sequence[Arm], records: Records) -> list[Arm]:
    """Return the arms under which some trace of a batch is not recorded yet."""
    return [arm for arm in arms if not all((trace.source, trace.name, arm.name) in records for trace in batch)]


def _key(trace: TokenTrace) -> tuple[int, ...]:
    """Return the key of a trace's random stream; it depends on the trace alone, not on its batch."""
    return (int.from_bytes(sha256(json.dumps([trace.source, trace.name]).encode()).digest()),)


def _batches(traces: Sequence[TokenTrace], tokens: int) -> Iterator[list[TokenTrace]]:
    """Yield traces ordered by length, in batches of at most `tokens` tokens including padding."""
    batch: list[TokenTrace] = []
    for trace in sorted(traces, key=lambda trace: len(trace.ids)):
        if batch and (len(batch) + 1) * len(trace.ids) > tokens:
            yield batch
            batch = []
        batch.append(trace)
    yield batch


def _record(
    trace: TokenTrace, arm: str, tokens: pd.DataFrame, reference: np.ndarray, altered: np.ndarray
) -> dict[str, Any]:
    ids = trace.ids
    before = tokens["token_index"].to_numpy() - 1  # log2 p of token i has index i - 1
    return {
        "source": trace.source,
        "trace": trace.name,
        "arm": arm,
        "tokens": [int(ids[index]) for index in tokens["token_index"]],
        **{name: tokens[name].tolist() for name in ("token_index", "kind", "block", "distance")},
        "log2p_memento": reference[before].tolist(),
        "log2p_arm": altered[before].tolist(),
    }
