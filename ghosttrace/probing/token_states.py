"""The cached states of retained tokens as arrays, for a probe of one's own.

table = features("toy-open", "traces.jsonl", layers=[3], kv="v")
table.values       # float32[R, 1, H_kv, D]
table.index        # pandas: one row per token, with its trace, block, carrier, position and text
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
from ghosttrace.model.checkpoint import Checkpoint, as_checkpoint
from ghosttrace.model.states import read_states
from ghosttrace.probing.features import LAYOUTS, batch_by_tokens, resolve_layers

RetainedCarrier = Literal["memento", "delimiters"]


@dataclass(frozen=True)
class FeatureTable:
    """The cached states of R tokens in L layers.

    Attributes:
        keys: float32[R, L, H_kv, D], as cached, after RoPE; None if not asked for.
        values: float32[R, L, H_kv, D]; None if not asked for.
        index: R rows: source, trace, block (counted from 0), carrier, position (in the sequence, from 0), token_id,
            text.
        layers: which layers of the model, ascending.
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
        model: a name for `ghosttrace.load`, or what it returned.
        traces: files, run folders of ablations, hub ids of data sets, or traces in tokens.
        layers: of the model, counted from 0; all of them if None.
        kv: keys, values, or both.
        carriers: `memento`, with `<|summary_start|>` and `<|summary_end|>`; `delimiters`, `<|block_start|>` and
            `<|block_end|>` where the policy keeps them.
        cache: `open`, as the model leaves it; `sealed`, recomputed from the retained text alone.
        limit: traces of each source.
        batch_tokens: tokens read together, padding included.

    Returns:
        The rows of each trace in the order of the traces, by position.

    Raises:
        UserError: there are no such traces, tokens, layers or states.
    """
    if not carriers or not set(carriers) <= set(get_args(RetainedCarrier)) or kv not in ("k", "v", "kv"):
        raise UserError(f"carriers are of {', '.join(get_args(RetainedCarrier))}, and kv is k, v or kv")
    if cache not in LAYOUTS or min(batch_tokens, 1 if limit is None else limit) < 1:
        raise UserError(f"cache is {' or '.join(LAYOUTS)}, and limit and batch_tokens are at least 1")
    checkpoint = as_checkpoint(model)
    if "delimiters" in carriers and checkpoint.policy.mask_delimiters:
        raise UserError("this policy erases delimiters with their block: load the model with mask_delimiters=False")
    chosen, found = resolve_layers(checkpoint, layers), load_traces(checkpoint, traces, limit)
    rows = [list(_retained(checkpoint, trace, carriers)) for trace in found]
    if not any(rows):
        raise UserError("no trace has a finished block and memento: give traces with the model's delimiters in them")
    states = _read(checkpoint, found, rows, chosen, kv, cache, batch_tokens)
    index = pd.DataFrame([row for of_trace in rows for row in of_trace])
    arrays = {kind: np.concatenate([parts[kind] for parts in states if parts]) for kind in kv}
    return FeatureTable(arrays.get("k"), arrays.get("v"), index, chosen)


def _retained(checkpoint: Checkpoint, trace: TokenTrace, carriers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of the index for one trace, by position."""
    ids, markup, policy = trace.ids, checkpoint.markup, checkpoint.policy
    kept = expiry(ids, markup, policy) == NEVER
    for number, block in enumerate(find_blocks(ids, markup, policy.require_assistant_section)):
        places = {"delimiters": (block.start, block.end), "memento": range(block.memento_start, block.memento_end + 1)}
        for carrier, position in ((name, at) for name, some in places.items() if name in carriers for at in some):
            if kept[position]:
                row: dict[str, Any] = {"source": trace.source, "trace": trace.name, "block": number, "carrier": carrier}
                row |= {"position": position, "token_id": int(ids[position])}
                yield row | {"text": checkpoint.tokenizer.decode([ids[position]])}


def _read(
    checkpoint: Checkpoint,
    traces: Sequence[TokenTrace],
    rows: Sequence[Sequence[dict[str, Any]]],
    layers: tuple[int, ...],
    kv: str,
    cache: str,
    batch_tokens: int,
) -> list[dict[str, np.ndarray]]:
    """For each trace float32[rows, L, H_kv, D] of keys and values; nothing where it has no rows."""
    found: list[dict[str, np.ndarray]] = [{} for _ in traces]
    lengths = {number: len(trace.ids) for number, trace in enumerate(traces)}
    order = sorted((number for number in lengths if rows[number]), key=lengths.__getitem__)
    for batch in batch_by_tokens(order, lengths, batch_tokens):
        layouts = [LAYOUTS[cache](traces[number].ids, checkpoint.markup, checkpoint.policy) for number in batch]
        places = [np.array([row["position"] for row in rows[number]]) for number in batch]
        width = max(map(len, places))
        states = read_states(
            checkpoint.model, layouts, [np.pad(at, (0, width - len(at)), mode="edge") for at in places]
        )
        for kind, tensor in (("k", states.keys), ("v", states.values)):
            if kind in kv:
                for row, number in enumerate(batch):
                    found[number][kind] = _array(tensor[list(layers), row], len(places[row]))
    return found


def _array(states: Tensor, count: int) -> np.ndarray:
    """float[L, H_kv, P, D] as float32[count, L, H_kv, D]."""
    return states[:, :, :count].permute(2, 0, 1, 3).to(torch.float32).cpu().numpy()
