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
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from ghosttrace.ablation.arms import ARMS, Arm, Memento
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.law.expiry import Policy, erasures
from ghosttrace.law.markup import Markup, find_blocks
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Session
from ghosttrace.runs.records import Layout, Records
from ghosttrace.stats import ratio

CLASSES = ("block", "memento", "delimiter", "answer", "other")
DISTANCES = (1, 2, 5, 17, 65, 257)  # lower ends of the groups of distances
LOGIT_BYTES = 2**28  # of one piece
CONTROL = "placebo"
ROUNDING = 1e-3  # bits a token that recomputation may shift on average

TRACES = Layout(
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


def log2_probabilities(
    checkpoint: Checkpoint, arm: Arm, traces: Sequence[Sequence[int]], keys: Sequence[tuple[int, ...]] | None = None
) -> list[np.ndarray]:
    """The probability of every token given those before it, under an arm.

    Args:
        checkpoint: the model and its law.
        arm: what happens to the cache when blocks expire.
        traces: token ids, of any lengths.
        keys: what the draws of each trace belong to, for arms that draw; else its place in the batch.

    Returns:
        For each trace float64[T - 1], log2 p of tokens 1 to T - 1.
    """
    model = checkpoint.model
    piece = max(1, LOGIT_BYTES // (4 * model.config.get_text_config().vocab_size * len(traces)))
    found: list[list[np.ndarray]] = [[] for _ in traces]
    with attending(model):
        rows = keys or [(row,) for row in range(len(traces))]
        session = Session(model, checkpoint.markup, arm.law(checkpoint.policy), rows, arm.eraser)
        for begin in range(0, max(map(len, traces)) - 1, piece):
            parts = [list(ids[:-1][begin : begin + piece]) for ids in traces]
            for row, logits in enumerate(session.advance(parts, every=True)):
                following = torch.tensor(traces[row][begin + 1 : begin + 1 + len(parts[row])], device=logits.device)
                chosen = logits.gather(-1, following[:, None].long())[:, 0].float()
                logp = (chosen - logits.float().logsumexp(-1)).double()
                found[row].append(logp.cpu().numpy() / np.log(2))
    return [np.concatenate(pieces) for pieces in found]


def first_measured(ids: Sequence[int], markup: Markup, policy: Policy) -> int:
    """The place of the first token at which the arms can differ; the length of the trace if there is none."""
    gone = erasures(ids, markup, policy)
    return min((max(erasure.at, erasure.block.memento_end + 1) for erasure in gone), default=len(ids))


def measured(trace: TokenTrace, markup: Markup, policy: Policy, think_end: Sequence[int]) -> pd.DataFrame:
    """The tokens at which the arms can differ: all from the first erasure on.

    Args:
        trace: the trace.
        markup, policy: the law.
        think_end: the ids of `</think>`, behind whose last occurrence the answer stands.

    Returns:
        One row a token: position, kind (of `CLASSES`), block (how many pairs are finished before it),
        distance (tokens since the last `<|summary_end|>`; the next one is 1).
    """
    ids = np.array(trace.ids)
    position = np.arange(first_measured(trace.ids, markup, policy), len(ids))
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
    arms: Sequence[str],
    records: Records,
    batch_tokens: int = 65_536,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Measure every trace that is not on record yet.

    Args:
        checkpoint: the model and its law.
        traces: what to read.
        arms: names in `ARMS`, each compared with `memento`.
        records: with layout `TRACES`.
        batch_tokens: traces of similar lengths are read together, as many as have this many tokens.
        progress: called with (traces done, traces in all).

    Raises:
        UserError: an arm cannot be run on the checkpoint.
    """
    chosen = {name: ARMS[name]() for name in arms}
    for arm in chosen.values():
        arm.law(checkpoint.policy)
        arm.check(checkpoint.model)
    think_end = checkpoint.tokenizer("</think>", add_special_tokens=False)["input_ids"]
    done = 0
    for batch in _batches(traces, batch_tokens):
        if not all((trace.source, trace.name, name) in records for trace in batch for name in chosen):
            ids, keys = [trace.ids for trace in batch], [_key(trace) for trace in batch]
            tokens = [measured(trace, checkpoint.markup, checkpoint.policy, think_end) for trace in batch]
            reference = log2_probabilities(checkpoint, Memento(), ids)
            for name, arm in chosen.items():
                altered = log2_probabilities(checkpoint, arm, ids, keys)
                for row, trace in enumerate(batch):
                    records.add(_record(trace, name, tokens[row], reference[row], altered[row]))
        done += len(batch)
        if progress:
            progress(done, len(traces))


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


def summarise(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Mean bits a token, by source and arm: over all, by kind, by block and by distance.

    Args:
        rows: of `TRACES`.

    Returns:
        One row per source, arm, `by` (all, kind, block, distance) and `group`: n_traces, n_tokens, bits
        (mean a token, with a 95 % interval that resamples traces; missing for a single trace),
        bits_per_trace (the mean over traces of their sum), and cross_entropy, -log2 p a trace.
    """
    parts = [_totals(row) for row in rows]
    if not any(len(part) for part in parts):
        return pd.DataFrame()
    totals = pd.concat(parts)
    found = []
    for (source, arm, by, group), part in totals.groupby(["source", "arm", "by", "group"], sort=False):
        mean = ratio(part["bits"].to_numpy(float), part["count"].to_numpy(float))
        row = {"source": source, "arm": arm, "by": by, "group": group}
        row |= {"n_traces": len(part), "n_tokens": int(part["count"].sum())}
        row |= {"bits": mean.value, "bits_low": mean.low, "bits_high": mean.high}
        found.append(row | {"bits_per_trace": part["bits"].mean(), "cross_entropy": part["surprise"].mean()})
    table = pd.DataFrame(found)
    rank = pd.DataFrame({name: pd.factorize(table[name])[0] for name in ("source", "arm", "by")})
    return table.iloc[np.lexsort((rank["by"], rank["arm"], rank["source"]))].reset_index(drop=True)


def _totals(row: dict[str, Any]) -> pd.DataFrame:
    """Sums over one trace by every grouping."""
    reach = np.searchsorted(DISTANCES, np.array(row["distance"], dtype=np.int64), side="right") - 1
    labels = [f"{a}-{b - 1}" if b - 1 > a else str(a) for a, b in pairwise(DISTANCES)] + [f"{DISTANCES[-1]}-"]
    surprise = -np.array(row["log2p_arm"], dtype=float)
    table = pd.DataFrame({"bits": np.array(row["log2p_memento"], dtype=float) + surprise, "surprise": surprise})
    groups = {"all": ["all"] * len(table), "kind": row["kind"], "block": row["block"]}
    groups["distance"] = [labels[place] for place in reach]
    frames = []
    for by, keys in groups.items():
        sums = table.groupby(np.array(keys, dtype=str), sort=False).agg(
            bits=("bits", "sum"), surprise=("surprise", "sum"), count=("bits", "size")
        )
        frames.append(sums.reset_index(names="group").assign(by=by, arm=row["arm"], source=row["source"]))
    return pd.concat(frames)


def failed_controls(results: pd.DataFrame, ceilings: dict[str, float | None]) -> tuple[str, ...]:
    """The controls that did not hold.

    `placebo` must change nothing. And where it is known how far a sealed cache can foresee the answer
    (`ledger`: one in 10**h), its cross-entropy cannot be below that.
    """
    failures = []
    for row in results.to_dict("records"):
        moved = abs(row["bits"]) > ROUNDING and not row["bits_low"] <= 0 <= row["bits_high"]
        if row["arm"] == CONTROL and row["by"] == "all" and moved:
            failures.append(f"{row['source']}: placebo moved {row['bits']:+.4f} bits a token")
        ceiling = ceilings.get(row["source"])
        if ceiling is not None and ARMS[row["arm"]].sealed and (row["by"], row["group"]) == ("kind", "answer"):
            least, count = -np.log2(ceiling), row["n_tokens"] / row["n_traces"]
            slack = (row["bits_high"] - row["bits"]) * count
            if row["cross_entropy"] + slack < least - ROUNDING:
                failures.append(
                    f"{row['source']}: {row['arm']} foresees answers at {row['cross_entropy']:.2f} bits, and a sealed "
                    f"cache leaves {least:.2f}"
                )
    return tuple(failures)
