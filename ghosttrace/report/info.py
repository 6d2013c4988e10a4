"""Rich tables of a model's properties and of the blocks that expire in a trace."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from ghosttrace.law.parse import MEMENTO
from ghosttrace.report.tables import results_table
from ghosttrace.runs.folder import json_rows

if TYPE_CHECKING:
    from ghosttrace.data.info import ModelInfo, TraceInfo

MAX_ROWS = 100
"""Number of erasures of a trace that the table shows."""


def model_findings(model: "ModelInfo") -> list[str]:
    """Return whether the model can be measured as it is, and what it was trained with."""
    missing = [token for token, number in model.delimiters.items() if number is None]
    if model.law is not None:
        return [f"The model can be measured as it is: it records the law {model.law}."]
    if missing:
        return [
            f"The tokenizer has no {', '.join(missing)}: map other tokens with --map-delimiters, add them with "
            "ghosttrace init-tokens, or measure another law with --law."
        ]
    if model.policy is None:
        return [
            "The four delimiters are in the tokenizer, but config.json records no policy: pass --mask-delimiters or "
            "--keep-delimiters, as the model was trained."
        ]
    if model.policy.keep_last_n_blocks < 0:
        return [
            "The policy erases nothing (keep_last_n_blocks=-1), as before training or after the stage full: measure "
            "the model with --keep-last-n-blocks 0, or train it with ghosttrace sft."
        ]
    delimiters = "erases delimiters with their block" if model.policy.mask_delimiters else "keeps delimiters"
    sealed = (
        " Its last training stage was sealed: decode it with the arm restart." if "sealed" in model.stages[-1:] else ""
    )
    return [f"The model can be measured as it is: its policy {delimiters}.{sealed}"]


def trace_findings(trace: "TraceInfo") -> list[str]:
    """Return how many blocks of a trace are erased and what that saves."""
    blocks, unit = len(trace.blocks), "finished blocks" if trace.law == MEMENTO else "erasures"
    if not blocks and trace.law != MEMENTO:
        return [f"The trace is too short for the law {trace.law} to erase anything."]
    if not blocks:
        return ["The trace has no finished block with a memento, so nothing is erased."]
    peak, area = int(trace.kv_tokens_held.max()), int(trace.kv_tokens_held.sum())
    unerased_area = trace.tokens * (trace.tokens + 1) // 2
    return [
        f"Of {trace.tokens:,} tokens at most {peak:,} are in the cache at once: {trace.tokens / peak:.2f}x less at the "
        f"peak and {unerased_area / area:.2f}x less over time than without erasing ({unit}: {blocks})."
    ]


def model_table(model: "ModelInfo") -> Table:
    """Return a table of a model's geometry, delimiters, policy and training stages."""
    table = results_table(title=escape(model.name), show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("family", model.family or "unknown (no config.json)")
    if model.geometry is not None:
        shape, windows = model.geometry, {w for w in model.geometry.windows if w}
        table.add_row(
            "layers",
            f"{shape.layers}, {sum(w is not None for w in shape.windows)} with a sliding window {windows or ''}",
        )
        table.add_row("key-value heads", f"{shape.kv_heads} of dimension {shape.head_dim}")
        dtype = str(model.dtype or "float32").removeprefix("torch.")
        table.add_row("KV bytes per token", f"{model.bytes_per_token:,} in {dtype}")
    for token, number in model.delimiters.items():
        table.add_row(escape(token), "missing" if number is None else str(number))
    if model.law is not None:
        table.add_row("law", escape(model.law))
    policy = model.policy and model.policy.to_dict()
    table.add_row("policy", ", ".join(f"{k}={v}" for k, v in policy.items()) if policy else "not recorded")
    if model.stages:
        advice = "; decode it with the arm restart" if model.stages[-1] == "sealed" else ""
        table.add_row("trained in stages", ", ".join(model.stages) + advice)
    return table


def model_entry(model: "ModelInfo") -> dict[str, Any]:
    """Return what `model_table` shows as JSON values."""
    shape = model.geometry
    return {
        "name": model.name,
        "family": model.family,
        "layers": shape and shape.layers,
        "kv_heads": shape and shape.kv_heads,
        "head_dim": shape and shape.head_dim,
        "bytes_per_token": model.bytes_per_token,
        "dtype": None if model.dtype is None else str(model.dtype).removeprefix("torch."),
        "delimiters": model.delimiters,
        "law": model.law,
        "policy": model.policy and model.policy.to_dict(),
        "stages": list(model.stages),
    }


def trace_rows(traces: "Sequence[TraceInfo]") -> list[dict[str, Any]]:
    """Return the blocks or erasures of all traces as JSON values, one row each."""
    return [{"trace": number, **row} for number, trace in enumerate(traces) for row in json_rows(trace.blocks)]


def trace_table(model: "ModelInfo", trace: "TraceInfo") -> Table:
    """Return a table of the keys that expire at each erasure of a trace, and the KV tokens saved."""
    peak = int(trace.kv_tokens_held.max())
    size = f" ({peak * model.bytes_per_token / 2**20:,.1f} MiB)" if model.bytes_per_token else ""
    hidden = max(0, len(trace.blocks) - MAX_ROWS)
    more = f" {hidden:,} more erasures follow." if hidden else ""
    table = results_table(caption=f"{trace.tokens:,} tokens; peak {peak:,} KV tokens{size}.{more}")
    for column in trace.blocks.columns:
        table.add_column(str(column).replace("_", " "), justify="right")
    for row in trace.blocks[:MAX_ROWS].itertuples(index=False):
        table.add_row(*("kept" if pd.isna(value) else f"{int(value):,}" for value in row))
    return table
