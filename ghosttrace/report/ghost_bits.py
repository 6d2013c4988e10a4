"""The command `ghosttrace bits`: progress, run folder, table, figure."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ghosttrace.ablation.arms import ARMS
from ghosttrace.data.tokens import TokenTrace
from ghosttrace.errors import UserError
from ghosttrace.ghost_bits.measure import CONTROL, TRACES, failed_controls, first_measured, measure, summarise
from ghosttrace.model.checkpoint import Checkpoint, fingerprint
from ghosttrace.report.ablation.figures import COLOURS
from ghosttrace.report.ablation.run import print_verdict, unlike, warn
from ghosttrace.runs.folder import json_rows, open_run, versions, write_figure, write_summary
from ghosttrace.runs.records import Log


def run(
    checkpoint: Checkpoint,
    traces: Sequence[TokenTrace],
    arms: Sequence[str],
    batch_tokens: int,
    ceilings: dict[str, float | None],
    out: Path | None = None,
    resume: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Measure ghost bits as the command does and leave a run folder behind.

    Args:
        checkpoint, traces, batch_tokens: see `ghosttrace.ghost_bits.measure.measure`.
        arms: what to compare with `memento`; the control `placebo` always runs.
        ceilings: of each source, how far a sealed cache can foresee its answers, where known.
        out, resume, options: as for `ghosttrace.report.ablation.run.run`.

    Returns:
        The results (`ghosttrace.ghost_bits.measure.summarise`).

    Raises:
        UserError: anything that cannot be run as asked; no trace has a finished block.
    """
    for name in arms:
        ARMS[name]().law(checkpoint.policy)  # refuses a policy that erases nothing
    markup, policy = checkpoint.markup, checkpoint.policy
    if all(first_measured(trace.ids, markup, policy) == len(trace.ids) for trace in traces):
        raise UserError(
            "no trace has a finished block and memento with text behind them: "
            "give traces with the model's delimiters in them"
        )
    console, arms = Console(), tuple(dict.fromkeys((*arms, CONTROL)))
    order = [(trace.source, trace.name, arm) for trace in traces for arm in arms]
    now = configuration(checkpoint, traces, arms, batch_tokens, options or {})
    with open_run(out, resume, now, warn(console)) as folder:
        log = Log(folder / "samples.jsonl", TRACES, warn(console))
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("traces", total=len(traces))
            measure(checkpoint, traces, arms, log, batch_tokens, lambda done, _: bar.update(task, completed=done))
        results = summarise(log.get(key) for key in order)
        failures = failed_controls(results, ceilings)
        rows = json_rows(results)
        write_summary(folder, "bits", not failures, rows, failures=list(failures), unlike=unlike(log, console))
        write_figure(folder, "bits", bits_figure(results))
        log.finish(order, folder / "samples.parquet")
    console.print(bits_table(results))
    print_verdict(console, failures, folder)
    return results


def configuration(
    checkpoint: Checkpoint,
    traces: Sequence[TokenTrace],
    arms: Sequence[str],
    batch_tokens: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that decides a run's numbers, for run.json."""
    digest = sha256()
    for trace in traces:
        digest.update(repr((trace.source, trace.name, trace.prompt, trace.response)).encode())
    return {
        "command": "bits",
        "model": checkpoint.name,
        "options": dict(options),
        "sha256": fingerprint(checkpoint),
        "policy": checkpoint.policy.to_dict(),
        "arms": list(arms),
        "traces": {"count": len(traces), "sha256": digest.hexdigest()},
        "settings": {"batch_tokens": batch_tokens},
        "versions": versions(),
        "device": str(checkpoint.model.device),
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
    }


def bits_table(results: pd.DataFrame) -> Table:
    """Over all tokens and by kind of token, 80 columns wide; of the control the total alone."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="Bits: log2 p(token | memento) - log2 p(token | arm), mean over the tokens from the first erasure on, "
        "with 95 % intervals over traces. By block and distance: summary.json.",
    )
    table.add_column("arm", no_wrap=True, max_width=22)
    for name in ("tokens", "n", "bits a token", "bits a trace"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in results[results["by"].isin(["all", "kind"])].to_dict("records"):
        if row["arm"] == CONTROL and row["by"] != "all":
            continue
        if previous != row["source"]:
            table.add_section()
            table.add_row(f"[bold]{escape(row['source'])}[/]", f"{row['n_traces']} traces")
        previous = row["source"]
        ends = "" if pd.isna(row["bits_low"]) else f" [{row['bits_low']:+.3f}, {row['bits_high']:+.3f}]"
        bits = f"{row['bits']:+.3f}{ends}", f"{row['bits_per_trace']:+.2f}"
        table.add_row(row["arm"], row["group"], f"{row['n_tokens']:,}", *bits)
    return table


def bits_figure(results: pd.DataFrame) -> Figure:
    """Bits a token by distance after the memento and by block, one line a source and arm."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = {"distance": "tokens after the memento", "block": "blocks before"}
    for axis, (by, title) in zip(axes, titles.items(), strict=True):
        part = results[results["by"] == by]
        groups = sorted(part["group"].unique(), key=lambda group: int(group.split("-")[0]))
        sources = list(dict.fromkeys(part["source"]))
        for (source, arm), rows in part.groupby(["source", "arm"], sort=False):
            line, style = rows.set_index("group").reindex(groups), sources.index(str(source))
            ends = np.array([line["bits"] - line["bits_low"], line["bits_high"] - line["bits"]])
            axis.errorbar(
                np.arange(len(groups)) + 0.06 * (style - len(sources) / 2),
                line["bits"],
                np.nan_to_num(ends),
                label=f"{source}, {arm}",
                color=COLOURS.get(str(arm), "#999999"),
                alpha=1 - 0.7 * style / len(sources),
                marker="osD^v"[style % 5],
                markersize=3,
            )
        axis.axhline(0, color="black", linewidth=0.7)
        axis.set(xticks=range(len(groups)), xticklabels=groups, xlabel=title)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("ghost bits a token")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7, frameon=False)
    return figure
