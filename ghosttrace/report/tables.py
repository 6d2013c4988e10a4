"""Results as rich tables."""

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from ghosttrace.data.info import ModelInfo, TraceInfo


def percent(value: float, low: float, high: float, signed: bool = False) -> str:
    """A share with its interval, in percent."""
    form = "+.1f" if signed else ".1f"
    return f"{100 * value:{form}} [{100 * low:{form}}, {100 * high:{form}}]"


def ablation_table(results: pd.DataFrame) -> Table:
    """One row per benchmark and arm (columns of `ghosttrace.ablation.outcome.summarise`), 80 columns wide."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="Accuracy and paired effect against memento in %, with 95 % intervals over problems; "
        "+/-: problems better and worse; mde: the smallest effect the run could have seen; "
        "KV: mean peak of tokens held; cut: responses that reached the limit.",
    )
    table.add_column("arm", overflow="fold")  # where room is short a name is broken, and no number cut
    cut = bool(results["truncated"].any())
    for name in ("accuracy", "effect", "+/-", "mde", "KV", *(["cut"] if cut else [])):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in results.to_dict("records"):
        if previous != row["bench"]:
            table.add_section()
            table.add_row(f"[bold]{escape(row['bench'])}[/]")
        previous, reference = row["bench"], row["arm"] == "memento"
        table.add_row(
            row["arm"],
            percent(row["accuracy"], row["accuracy_low"], row["accuracy_high"]),
            "reference" if reference else percent(row["effect"], row["effect_low"], row["effect_high"], signed=True),
            "" if reference else f"{row['better']}/{row['worse']}",
            "" if reference else f"{100 * row['detectable']:.1f}",
            f"{row['peak_kv_tokens']:,.0f}",
            *([f"{row['truncated']:,}"] if cut else []),
        )
    return table


def swap_table(results: pd.DataFrame) -> Table | None:
    """Whom the answers follow under `swap`; None if nothing was swapped."""
    swapped = results[results["follows_donor"].notna()]
    if swapped.empty:
        return None
    table = Table(caption="swap: one memento computed from a counterfactual block, its text the same (% of answers)")
    table.add_column("bench")
    for name in ("follow the donor", "keep the original", "neither"):
        table.add_column(name, justify="right")
    for row in swapped.to_dict("records"):
        table.add_row(
            escape(row["bench"]), *(f"{100 * row[n]:.1f}" for n in ("follows_donor", "keeps_original", "neither"))
        )
    return table


def model_table(model: ModelInfo) -> Table:
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


def trace_table(model: ModelInfo, trace: TraceInfo) -> Table:
    """What the law erases from a trace, block by block."""
    peak, area, plain = int(trace.curve.max()), int(trace.curve.sum()), trace.tokens * (trace.tokens + 1) // 2
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
