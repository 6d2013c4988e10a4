"""The cached states of retained tokens as arrays, for custom analyses.

table = features("toy-open", "traces.jsonl", layers=[3], kv="v")
table.values       # float32[R, 1, H_kv, D]
table.index        # pandas: one row per token, with its trace, block, carrier, token index and text
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ghosttrace.data.tokens import TokenTrace, TraceSources, load_traces
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import NEVER, MementoLaw, expiry
from ghosttrace.law.markup import find_blocks
from ghosttrace.model.checkpoint import Checkpoint, as_checkpoint
from ghosttrace.model.states import read_states
from ghosttrace.probing.features import LAYOUTS, batch_by_tokens, resolve_layers

RetainedCarrier = Literal["memento", "delimiters", "turn"]
MEMENTO_CARRIERS: tuple[RetainedCarrier, ...] = ("memento", "delimiters")
OTHER_CARRIERS: tuple[RetainedCarrier, ...] = ("delimiters", "turn")


@dataclass(frozen=True)
class FeatureTable:
    """The cached states of R tokens in L layers.

    Attributes:
        keys: float32[R, L, H_kv, D], as cached, after RoPE; None if `kv` is `v`.
        values: float32[R, L, H_kv, D]; None if `kv` is `k`.
        index: R rows with the columns source, trace, block (counted from 0; under another law than Memento's, the
            number of the turn), carrier, token_index (in the sequence, counted from 0), token_id and text.
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
    carriers: Sequence[RetainedCarrier] | None = None,
    cache: Literal["open", "sealed"] = "open",
    law: str | None = None,
    limit: int | None = None,
    batch_tokens: int = 16_384,
) -> FeatureTable:
    """Read the cached states of retained tokens: of every finished block-memento pair, or of every turn.

    Args:
        model: A name for `ghosttrace.load`, or a loaded checkpoint.
        traces: Files, run folders of ablations, hub ids of data sets, or tokenized traces.
        layers: Layers of the model, counted from 0; None for all.
        kv: Read keys, values, or both.
        carriers: `memento`, the memento with `<|summary_start|>` and `<|summary_end|>`; `delimiters`,
            `<|block_start|>` and `<|block_end|>`, if the policy retains them. Under another law than Memento's,
            `delimiters`, the tokens that open and close turns and tool results, and `turn`, all other retained tokens.
            None: `memento`, or both carriers of another law.
        cache: `open`, the normal cache; `sealed`, recomputed from the retained text alone.
        law: Specification of a law, such as `window:64,16`, that replaces the checkpoint's.
        limit: Maximum number of traces per source.
        batch_tokens: Maximum number of tokens per batch, padding included.

    Returns:
        The states, in the order of the traces, and by token index within a trace. A text without turns is turn 0, as is
        what stands before the first turn.

    Raises:
        UserError: An argument is invalid, the policy erases the delimiters, no trace has a finished pair or a retained
            token of the carriers, or a state is not finite.
    """
    if kv not in ("k", "v", "kv") or cache not in LAYOUTS:
        raise UserError(f"kv must be k, v or kv, and cache must be {' or '.join(LAYOUTS)}")
    if min(batch_tokens, 1 if limit is None else limit) < 1:
        raise UserError("limit and batch_tokens must be at least 1")
    checkpoint = as_checkpoint(model, law)
    chosen = _check_carriers(checkpoint, carriers)
    resolved_layers, loaded = resolve_layers(checkpoint, layers), load_traces(checkpoint, traces, limit)
    is_memento = isinstance(checkpoint.law, MementoLaw)
    find = _tokens_of_pairs if is_memento else _tokens_of_turns
    rows = [list(_index_rows(checkpoint, trace, find(checkpoint, trace.ids), chosen)) for trace in loaded]
    if not any(rows):
        pairs = "has a finished block and memento: give traces with the model's delimiters in them"
        tokens = f"retains a token of {' or '.join(chosen)}: choose other carriers, or give other traces"
        raise UserError(f"no trace {pairs if is_memento else tokens}")
    states = _read(checkpoint, loaded, rows, resolved_layers, kv, cache, batch_tokens)
    index = pd.DataFrame([row for trace_rows in rows for row in trace_rows])
    arrays = {kind: np.concatenate([parts[kind] for parts in states if parts]) for kind in kv}
    return FeatureTable(arrays.get("k"), arrays.get("v"), index, resolved_layers)


def _check_carriers(checkpoint: Checkpoint, carriers: Sequence[RetainedCarrier] | None) -> Sequence[RetainedCarrier]:
    """Return the carriers, by default those of the checkpoint's law.

    Raises:
        UserError: The law does not know or does not retain one of them.
    """
    law = checkpoint.law
    known = MEMENTO_CARRIERS if isinstance(law, MementoLaw) else OTHER_CARRIERS
    chosen = (known[:1] if isinstance(law, MementoLaw) else known) if carriers is None else carriers
    if not chosen or not set(chosen) <= set(known):
        raise UserError(f"carriers must be from {', '.join(known)} under the law {law.spec}")
    if isinstance(law, MementoLaw) and "delimiters" in chosen and law.policy.mask_delimiters:
        raise UserError("this policy erases delimiters with their block: load the model with mask_delimiters=False")
    return chosen


def _tokens_of_pairs(checkpoint: Checkpoint, ids: Sequence[int]) -> Iterator[tuple[int, RetainedCarrier, int]]:
    """Yield block number, carrier and token index of every token of the carriers under Memento's law."""
    section = checkpoint.policy.require_assistant_section
    for number, block in enumerate(find_blocks(ids, checkpoint.markup, section)):
        yield from ((number, "delimiters", index) for index in (block.start, block.end))
        yield from ((number, "memento", index) for index in range(block.memento_start, block.memento_end + 1))


def _tokens_of_turns(checkpoint: Checkpoint, ids: Sequence[int]) -> Iterator[tuple[int, RetainedCarrier, int]]:
    """Yield turn number, carrier and token index of every token under another law than Memento's."""
    starts, delimiters, number = set(checkpoint.chat.turn_starts), set(checkpoint.chat.delimiters), -1
    for index, token in enumerate(ids):
        number += token in starts
        yield max(number, 0), "delimiters" if token in delimiters else "turn", index


def _index_rows(
    checkpoint: Checkpoint,
    trace: TokenTrace,
    tokens: Iterator[tuple[int, RetainedCarrier, int]],
    carriers: Sequence[RetainedCarrier],
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the index for one trace: the retained ones among the tokens of the carriers."""
    ids = trace.ids
    retained = expiry(ids, checkpoint.law) == NEVER
    for number, carrier, index in tokens:
        if carrier in carriers and retained[index]:
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
        layouts = [LAYOUTS[cache](traces[number].ids, checkpoint.law) for number in batch]
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
