"""The command `ghosttrace trace`: progress, run folder, table, heat maps."""

import re
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

from ghosttrace.model.checkpoint import Checkpoint, fingerprint
from ghosttrace.patching import PATCHES, Case, Handful, failed_controls, find_handfuls, keys_of, measure, summarise
from ghosttrace.patching.summary import is_control
from ghosttrace.report.ablation.run import warn
from ghosttrace.runs.folder import json_rows, open_run, versions, write_figure, write_summary
from ghosttrace.runs.records import Log

SEEN = 0.005  # bits; a layer of less is not in the table
TOP_LAYERS = 5  # in the table; all of them are in the heat maps
LABELLED = 120  # cells of a heat map; more are not labelled with their numbers
WORDS = {"k": "keys", "v": "values"}


def run(
    checkpoint: Checkpoint,
    cases: Sequence[Case],
    batch_tokens: int = 65_536,
    parts: int = 8,
    out: Path | None = None,
    resume: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Trace as the command does and leave a run folder behind.

    Args:
        checkpoint, batch_tokens, parts: see `ghosttrace.patching.measure`.
        cases: of `ghosttrace.patching.make_cases`.
        out, resume, options: as for `ghosttrace.report.ablation.run.run`.

    Returns:
        The results (`ghosttrace.patching.summarise`); where a control failed, `valid` is false.
    """
    console = Console()
    now = configuration(checkpoint, cases, batch_tokens, parts, options or {})
    with open_run(out, resume, now, warn(console)) as folder:
        log = Log(folder / "samples.jsonl", PATCHES, warn(console))
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("traces", total=len(cases))
            measure(checkpoint, cases, log, batch_tokens, parts, lambda done, _: bar.update(task, completed=done))
            bar.update(task, description="sites that carry it", completed=0, total=None)
            results = summarise(log.get(key) for key in keys_of(cases))
            handfuls = find_handfuls(checkpoint, cases, log, batch_tokens, parts)
        failures = failed_controls(results)
        kept = [handful_row(handful, results) for handful in handfuls]
        write_summary(folder, "trace", not failures, json_rows(results), failures=list(failures), handfuls=kept)
        for source in dict.fromkeys(results["source"]):
            name = re.sub(r"[^\w.-]+", "-", source).strip("-.")
            write_figure(folder, f"trace-{name}", heat_maps(results[results["source"] == source]))
        log.finish(keys_of(cases), folder / "samples.parquet")
    console.print(trace_table(results))
    for row in kept:
        console.print(handful_text(row), soft_wrap=True)
    console.print("Controls held. Written to" if not failures else "Written to", str(folder), soft_wrap=True)
    for failure in failures:
        console.print(f"[bold red]INVALID[/] {failure}", soft_wrap=True)
    return results


def configuration(
    checkpoint: Checkpoint, cases: Sequence[Case], batch_tokens: int, parts: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides a run's numbers, for run.json."""
    digest = sha256()
    for case in cases:
        trace = (case.trace.source, case.trace.name, case.trace.prompt, case.trace.response)
        digest.update(repr((*trace, case.number, case.donor, case.other)).encode())
    return {
        "command": "trace",
        "model": checkpoint.name,
        "options": dict(options),
        "sha256": fingerprint(checkpoint),
        "policy": checkpoint.policy.to_dict(),
        "traces": {"count": len(cases), "sha256": digest.hexdigest()},
        "settings": {"batch_tokens": batch_tokens, "parts": parts},
        "versions": versions(),
        "device": str(checkpoint.model.device),
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
    }


def handful_row(handful: Handful, results: pd.DataFrame) -> dict[str, Any]:
    """A handful as JSON values, with the text of its tokens."""
    mine = results[(results["source"] == handful.source) & (results["intervention"] == "swap")]
    texts = {(row["carrier"], row["place"]): row["token"] for row in mine.to_dict("records")}
    sites = [
        {name: getattr(site, name) for name in ("carrier", "place", "layer", "kv")}
        | {"token": texts[site.carrier, site.place]}
        for site in handful.sites
    ]
    share = handful.recovered
    ends = {"recovered_low": share.low, "recovered_high": share.high}
    return {
        "source": handful.source,
        "sites": sites,
        "recovered": share.value,
        **{name: None if np.isnan(value) else value for name, value in ends.items()},
        "n_traces": handful.n_traces,
        "enough": handful.enough,
        "valid": bool(mine["valid"].all()),
    }


def handful_text(row: Mapping[str, Any]) -> str:
    """A handful in one sentence."""
    named = [f"layer {site['layer']} {WORDS[site['kv']]} at {_label(site)}" for site in row["sites"][:8]]
    more = f", and {len(row['sites']) - 8} more" if len(row["sites"]) > 8 else ""
    ends = [row["recovered_low"], row["recovered_high"]]
    interval = "" if None in ends else f" [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]"
    sites = "1 site does" if len(row["sites"]) == 1 else f"{len(row['sites'])} sites together do"
    share = f"{100 * row['recovered']:.0f}{interval} % of what everything does ({row['n_traces']} traces)"
    return escape(f"{row['source']}: swapped, {sites} {share}: {', '.join(named)}{more}")


def _label(row: Mapping[Any, Any]) -> str:
    """How a token is called: by its text, and by its place in the memento where that does not tell it."""
    text = str(row["token"])
    if row["place"] == "all" or re.fullmatch(r"<.+>|run \d+", text):
        return text
    return f"token {row['place']}" if text == "varies" else f"token {row['place']} {text!r}"


def trace_table(results: pd.DataFrame) -> Table:
    """Carriers, tokens and the layers that matter most, 80 columns wide; controls are left out."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="Bits by which log2 p(the trace's own continuation) falls when keys (k), values (v) or both (k+v) of "
        "that part alone are sealed or swapped, with 95 % intervals over traces; share: of what swapping or sealing "
        "everything does; donor: answers that become the donor's. All sites: summary.json.",
    )
    table.add_column("", no_wrap=True, max_width=26)
    for name in ("k", "v", "k+v", "share", "donor"):
        table.add_column(name, justify="right", no_wrap=True)
    for (source, kind), part in results.groupby(["source", "intervention"], sort=False):
        count = part["n_traces"].max()
        table.add_section()
        table.add_row(f"[bold]{escape(str(source))}[/]", "", "", f"{kind}, {count} traces")
        shown = part[~part.apply(lambda row: is_control(row.to_dict()), axis=1)]
        everywhere = shown[shown["layer"] == "all"]
        layers = shown[(shown["carrier"] == "memento") & (shown["place"] == "all") & (shown["layer"] != "all")]
        moved = layers.assign(bits=layers["bits"].abs()).groupby("layer")["bits"].max()
        best = moved[moved >= SEEN].nlargest(TOP_LAYERS).index
        for (carrier, _), cell in everywhere.groupby(["carrier", "place"], sort=False):
            whole = cell["place"].iloc[0] == "all"
            table.add_row(str(carrier) if whole else f"  {escape(_label(cell.iloc[0].to_dict()))}", *_columns(cell))
        for layer in sorted(best):
            table.add_row(f"memento, layer {layer}", *_columns(layers[layers["layer"] == layer]))
    return table


def _columns(cell: pd.DataFrame) -> list[str]:
    rows = {row["kv"]: row for row in cell.to_dict("records")}
    both = rows["kv"]
    ends = "" if pd.isna(both["bits_low"]) else f" [{_signed(both['bits_low'])}, {_signed(both['bits_high'])}]"
    shares = ["" if pd.isna(both[name]) else f"{round(100 * both[name])} %" for name in ("recovered", "follows_donor")]
    return [_signed(rows["k"]["bits"]), _signed(rows["v"]["bits"]), _signed(both["bits"]) + ends, *shares]


def _signed(bits: float) -> str:
    """Two decimals, and no sign where they are zero."""
    return "0.00" if abs(bits) < 0.005 else f"{bits:+.2f}"


def heat_maps(results: pd.DataFrame) -> Figure:
    """Bits by layer and token, one column for keys and one for values, one row an intervention.

    Args:
        results: of one source.
    """
    single = results[(results["place"] != "all") & (results["layer"] != "all")]
    kinds = list(dict.fromkeys(single["intervention"]))
    tokens = list(dict.fromkeys(zip(single["carrier"], single["place"], strict=True)))
    layers = single["layer"].nunique()
    size = 2 * (0.62 * len(tokens) + 1.0) + 0.8, len(kinds) * (0.26 * layers + 1.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(kinds), 2, squeeze=False, sharey=True)
    for line, kind in zip(axes, kinds, strict=True):
        part = single[single["intervention"] == kind]
        top = max(float(part.loc[part["kv"] != "kv", "bits"].max()), 1e-3)
        for axis, kv in zip(line, WORDS, strict=True):
            cells = part[part["kv"] == kv].set_index(["layer", "carrier", "place"])
            grid = np.array([[cells.loc[(n, *token), "bits"] for token in tokens] for n in range(layers)], dtype=float)
            image = axis.imshow(grid, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=top)
            labels = [_label({"place": token[1], "token": cells.loc[(0, *token), "token"]}) for token in tokens]
            axis.set_xticks(range(len(tokens)), labels, rotation=30, ha="right", fontsize=7)
            axis.set_yticks(range(0, layers, max(1, layers // 12)))
            axis.set_title(f"{results['source'].iloc[0]}: {kind}, {WORDS[kv]}", fontsize=9)
            if grid.size <= LABELLED:
                _write_numbers(axis, grid, top)
        line[0].set_ylabel("layer")
        figure.colorbar(image, ax=line, label="bits of the continuation")
    return figure


def _write_numbers(axis: Any, grid: np.ndarray, top: float) -> None:
    for (layer, token), bits in np.ndenumerate(grid):
        colour = "white" if bits > 0.6 * top else "black"
        text = f"{bits:.1f}" if abs(bits) >= 0.05 else "0"
        axis.text(token, layer, text, ha="center", va="center", fontsize=6, color=colour)
