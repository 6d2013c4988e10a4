"""The cached states of retained tokens as arrays, for custom analyses.

table = features("toy-open", "traces.jsonl", layers=[3], kv="v")
table.values       # float32[R, 1, H_kv, D]
table.index        # pandas: one row per token, with its trace, block, carrier, token index and text
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ghosttrace.data.tokens import TokenTrace, TraceSources, load_traces
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, expiry
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.checkpoint import Checkpoint, as_memento_checkpoint
from ghosttrace.model.states import read_states
from ghosttrace.probing.features import LAYOUTS, batch_by_tokens, resolve_layers

RetainedCarrier = Literal["memento", "delimiters"]


@dataclass(frozen=True)
class FeatureTable:
    """The cached states of R tokens in L layers.

    Attributes:
        keys: float32[R, L, H_kv, D], as cached, after RoPE; None if `kv` is `v`.
        values: float32[R, L, H_kv, D]; None if `kv` is `k`.
        index: R rows with the columns source, trace, block (counted from 0), carrier, token_index (in the
            sequence, counted from 0), token_id and text.
        layers: The L layers of the model, ascending.
    """

    keys: np.ndarray | None
    values: np.ndarray | None
    index: pd.DataFrame
    layers: tuple[int, ...]


def features(
    model: str | Path | Checkpoint,
    traces: TraceSources,
    *,
    layers: Sequence[int] | None = None,
    kv: Literal["k", "v", "kv"] = "kv",
    carriers: Sequence[RetainedCarrier] = ("memento",),
    cache: Literal["open", "sealed"] = "open",
    limit: int | None = None,
    batch_tokens: int = 16_384,
) -> FeatureTable:
    """Read the cached states of the retained tokens of every finished block-memento pair.

    Args:
        model: A name for `ghosttrace.load`, or a loaded checkpoint.
        traces: Files, run folders of ablations, hub ids of data sets, or tokenized traces.
        layers: Layers of the model, counted from 0; None for all.
        kv: Read keys, values, or both.
        carriers: `memento`, the memento with `<|summary_start|>` and `<|summary_end|>`; `delimiters`,
            `<|block_start|>` and `<|block_end|>`, if the policy retains them.
        cache: `open`, the normal cache; `sealed`, recomputed from the retained text alone.
        limit: Maximum number of traces per source.
        batch_tokens: Maximum number of tokens per batch, padding included.

    Returns:
        The states, in the order of the traces, and by token index within a trace.

    Raises:
        UserError: An argument is invalid, the policy erases the delimiters, no trace has a finished pair, or a state is
            not finite.
    """
    if not carriers or not set(carriers) <= set(get_args(RetainedCarrier)) or kv not in ("k", "v", "kv"):
        raise UserError(f"carriers must be from {', '.join(get_args(RetainedCarrier))}, and kv must be k, v or kv")
    if cache not in LAYOUTS or min(batch_tokens, 1 if limit is None else limit) < 1:
        raise UserError(f"cache must be {' or '.join(LAYOUTS)}, and limit and batch_tokens must be at least 1")
    checkpoint = as_memento_checkpoint(model, "features")
    if "delimiters" in carriers and checkpoint.policy.mask_delimiters:
        raise UserError("this policy erases delimiters with their block: load the model with mask_delimiters=False")
    resolved_layers, loaded = resolve_layers(checkpoint, layers), load_traces(checkpoint, traces, limit)
    rows = [list(_index_rows(checkpoint, trace, carriers)) for trace in loaded]
    if not any(rows):
        raise UserError("no trace has a finished block and memento: give traces with the model's delimiters in them")
    states = _read(checkpoint, loaded, rows, resolved_layers, kv, cache, batch_tokens)
    index = pd.DataFrame([row for trace_rows in rows for row in trace_rows])
    arrays = {kind: np.concatenate([parts[kind] for parts in states if parts]) for kind in kv}
    return FeatureTable(arrays.get("k"), arrays.get("v"), index, resolved_layers)


def _index_rows(checkpoint: Checkpoint, trace: TokenTrace, carriers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the index for one trace, by token index."""
    ids, markup, policy = trace.ids, checkpoint.markup, checkpoint.policy
    retained = expiry(ids, markup, policy) == NEVER
    for number, block in enumerate(find_blocks(ids, markup, policy.require_assistant_section)):
        indices_by_carrier = {
            "delimiters": (block.start, block.end),
            "memento": range(block.memento_start, block.memento_end + 1),
        }
        for carrier, index in (
            (name, each) for name, in_carrier in indices_by_carrier.items() if name in carriers for each in in_carrier
        ):
            if retained[index]:
                yield {
                    "source": trace.source,
                    "trace": trace.name,
                    "block": number,
                    "carrier": carrier,
                    "token_index": index,
                    "token_id": int(ids[index]),
                    "text": checkpoint.tokenizer.decode([ids[index]]),
                }


def _read(
    checkpoint: Checkpoint,
    traces: Sequence[TokenTrace],
    rows: Sequence[Sequence[dict[str, Any]]],
    layers: tuple[int, ...],
    kv: str,
    cache: str,
    batch_tokens: int,
) -> list[dict[str, np.ndarray]]:
    """Return for each trace its keys and values, float32[rows, L, H_kv, D]; empty if the trace has no rows."""
    arrays: list[dict[str, np.ndarray]] = [{} for _ in traces]
    lengths = {number: len(trace.ids) for number, trace in enumerate(traces)}
    order = sorted((number for number in lengths if rows[number]), key=lengths.__getitem__)
    for batch in batch_by_tokens(order, lengths, batch_tokens):
        layouts = [LAYOUTS[cache](traces[number].ids, checkpoint.markup, checkpoint.policy) for number in batch]
        indices = [np.array([row["token_index"] for row in rows[number]]) for number in batch]
        width = max(map(len, indices))
        padded = [np.pad(row, (0, width - len(row)), mode="edge") for row in indices]
        states = read_states(checkpoint.model, layouts, padded)
        for kind, tensor in (("k", states.keys), ("v", states.values)):
            if kind in kv:
                for row, number in enumerate(batch):
                    arrays[number][kind] = _array(tensor[list(layers), row], len(indices[row]))
    return arrays


def _array(states: Tensor, count: int) -> np.ndarray:
    """Convert float[L, H_kv, P, D] to float32[count, L, H_kv, D], without padding."""
    return states[:, :, :count].permute(2, 0, 1, 3).to(torch.float32).cpu().numpy()
