"""What a model is, and what the law erases from a trace, as rich tables."""

from typing import TYPE_CHECKING

import pandas as pd
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ghosttrace.data.info import ModelInfo, TraceInfo


def model_table(model: "ModelInfo") -> Table:
    """What a model is."""
    table = Table(title=escape(model.name), show_header=False)
    table.add_row("family", model.family or "unknown (no config.json)")
    if model.geometry is not None:
        shape, windows = model.geometry, {w for w in model.geometry.windows if w}
        table.add_row(
            "layers",
            f"{shape.layers}, {sum(w is not None for w in shape.windows)} with a sliding window {windows or ''}",
        )
        table.add_row("key-value heads", f"{shape.kv_heads} of dimension {shape.head_dim}")
        dtype = str(model.dtype or "float32").removeprefix("torch.")
        table.add_row("KV bytes a token", f"{model.bytes_per_token:,} in {dtype}")
    for token, number in model.delimiters.items():
        table.add_row(escape(token), "missing" if number is None else str(number))
    policy = model.policy
    table.add_row("policy", ", ".join(f"{k}={v}" for k, v in policy.items()) if policy else "not recorded")
    if model.stages:
        native = "; decode it with the arm restart" if model.stages[-1] == "sealed" else ""
        table.add_row("trained in stages", ", ".join(model.stages) + native)
    return table


def trace_table(model: "ModelInfo", trace: "TraceInfo") -> Table:
    """What the law erases from a trace, block by block."""
    peak, area, plain = (
        int(trace.kv_tokens_held.max()),
        int(trace.kv_tokens_held.sum()),
        trace.tokens * (trace.tokens + 1) // 2,
    )
    size = f" ({peak * model.bytes_per_token / 2**20:,.1f} MiB)" if model.bytes_per_token else ""
    caption = (
        f"{trace.tokens:,} tokens; peak {peak:,} KV tokens{size}, {trace.tokens / peak:.2f}x less than unerased; "
        f"area {area:,} token-steps, {plain / area:.2f}x less"
    )
    table = Table(caption=caption)
    for column in trace.blocks.columns:
        table.add_column(str(column).replace("_", " "), justify="right")
    for row in trace.blocks.itertuples(index=False):
        table.add_row(*("kept" if pd.isna(value) else f"{int(value):,}" for value in row))
    return table
