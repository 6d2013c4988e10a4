"""Ghost bits: what the channel is worth on a fixed text, token by token.

For every token after a memento, log2 p(token | normal cache) - log2 p(token | altered cache), both
teacher-forced over the same trace; nothing is generated. Under `restart` it is what the ghost channel
tells about the text that followed, with the unfamiliarity of a sealed cache mixed in (DESIGN: a drop
alone cannot tell the two apart). `placebo` is the control: the same work with the blocks visible must
change nothing.

A trace costs one forward pass under each arm, in pieces, so that the logits of a long trace and a
large vocabulary never stand in memory at once.
"""

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ghosttrace.ablation.arms import Arm, Memento
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.ghost_bits.likelihood import first_measured_index, log2_probabilities
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import Markup, find_blocks
from ghosttrace.model.checkpoint import Checkpoint
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
            "position": pa.list_(pa.int32()),
            "kind": pa.list_(pa.string()),
            "block": pa.list_(pa.int32()),
            "distance": pa.list_(pa.int32()),
            "log2p_memento": pa.list_(pa.float64()),
            "log2p_arm": pa.list_(pa.float64()),
        }
    ),
    ("source", "trace", "arm"),
)


def measured_tokens(trace: TokenTrace, markup: Markup, policy: Policy, think_end: Sequence[int]) -> pd.DataFrame:
    """The tokens at which the arms can differ: all from the first erasure on.

    Args:
        trace: the trace.
        markup, policy: the law.
        think_end: the ids of `</think>`, behind whose last occurrence the answer stands.

    Returns:
        One row a token: position, kind (of `TOKEN_KINDS`), block (how many pairs are finished before it),
        distance (tokens since the last `<|summary_end|>`; the next one is 1).
    """
    ids = np.array(trace.ids)
    position = np.arange(first_measured_index(trace.ids, markup, policy), len(ids))
    kind = np.full(len(ids), "other", dtype=object)
    blocks = find_blocks(ids, markup, policy.require_assistant_section)
    for block in blocks:
        kind[block.start + 1 : block.end] = "block"
        kind[block.memento_start + 1 : block.memento_end] = "memento"
    kind[np.isin(ids, markup.delimiters)] = "delimiter"
    width = len(think_end)
    ends = [k + width for k in range(len(trace.prompt), len(ids)) if list(ids[k : k + width]) == list(think_end)]
    if ends:
        kind[ends[-1] :] = "answer"
    closed = np.array([block.memento_end for block in blocks], dtype=np.int64)
    number = np.searchsorted(closed, position)
    return pd.DataFrame(
        {
            "position": position,
            "kind": kind[position],
            "block": number,
            "distance": position - closed[number - 1] if len(position) else position,
        }
    )


def measure(
    checkpoint: Checkpoint,
    traces: Sequence[TokenTrace],
    arms: Sequence[Arm],
    records: Records,
    batch_tokens: int = 65_536,
    progress: Progress = no_progress,
) -> None:
    """Measure every trace that is not on record yet.

    Args:
        checkpoint: the model and its law.
        traces: what to read.
        arms: each is compared with `memento`.
        records: with layout `BITS_TABLE`.
        batch_tokens: traces of similar lengths are read together, as many as have this many tokens.
        progress: called with (what, traces done, traces in all).

    Raises:
        UserError: an arm cannot be run on the checkpoint.
    """
    chosen = {arm.name: arm for arm in arms}
    for arm in arms:
        arm.adapt_policy(checkpoint.policy)
        arm.check(checkpoint.model)
    think_end = checkpoint.tokenizer("</think>", add_special_tokens=False)["input_ids"]
    done = 0
    for batch in _batches(traces, batch_tokens):
        if not all((trace.source, trace.name, name) in records for trace in batch for name in chosen):
            ids, keys = [trace.ids for trace in batch], [_key(trace) for trace in batch]
            tokens = [measured_tokens(trace, checkpoint.markup, checkpoint.policy, think_end) for trace in batch]
            reference = log2_probabilities(checkpoint, Memento(), ids)
            for name, arm in chosen.items():
                altered = log2_probabilities(checkpoint, arm, ids, keys)
                for row, trace in enumerate(batch):
                    records.add(_record(trace, name, tokens[row], reference[row], altered[row]))
        done += len(batch)
        progress("traces", done, len(traces))


def _key(trace: TokenTrace) -> tuple[int, ...]:
    """What a trace's draws belong to: its name, whatever else is in its batch."""
    return (int.from_bytes(sha256(json.dumps([trace.source, trace.name]).encode()).digest()),)


def _batches(traces: Sequence[TokenTrace], tokens: int) -> Iterator[list[TokenTrace]]:
    """Traces in order of length, in batches that stay under so many tokens, padding included."""
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
    ids, before = trace.ids, tokens["position"].to_numpy() - 1
    return {
        "source": trace.source,
        "trace": trace.name,
        "arm": arm,
        "tokens": [int(ids[place]) for place in tokens["position"]],
        **{name: tokens[name].tolist() for name in ("position", "kind", "block", "distance")},
        "log2p_memento": reference[before].tolist(),
        "log2p_arm": altered[before].tolist(),
    }
