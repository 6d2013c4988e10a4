"""Rich table, sentence and heat maps of patching results."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from ghosttrace.report.findings import KV_NAMES, failed_controls_text
from ghosttrace.report.tables import results_table

MIN_BITS_SHOWN = 0.005  # layers with a smaller effect are not in the table
TOP_LAYERS = 5  # rows of the table; the heat maps show all layers
MAX_LABELLED_CELLS = 120  # larger heat maps have no numbers in their cells


def site_set_text(row: Mapping[str, Any]) -> str:
    """Describe in words which sites were swapped together and the share of the whole effect that this reproduces.

    Args:
        row: An entry of `PatchResult.site_sets`.
    """
    named = [f"layer {site['layer']} {KV_NAMES[site['kv']]} at {_label(site)}" for site in row["sites"][:8]]
    more = f", and {len(row['sites']) - 8} more" if len(row["sites"]) > 8 else ""
    ends = [row["recovered_low"], row["recovered_high"]]
    interval = "" if None in ends else f" [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]"
    sites = "swapping 1 site" if len(row["sites"]) == 1 else f"swapping {len(row['sites'])} sites together"
    share = f"{100 * row['recovered']:.0f}{interval} % of the effect of swapping everything ({row['n_traces']} traces)"
    failed = "" if row["enough"] else "No smaller set reproduces enough. "
    return f"{failed}On {row['source']}, {sites} reproduces {share}: {', '.join(named)}{more}."


def _label(row: Mapping[Any, Any]) -> str:
    """Return a token's text, with its index in the memento unless the text identifies it."""
    text = str(row["token"])
    if row["offset"] == "all" or re.fullmatch(r"<.+>|run \d+", text):
        return text
    return f"token {row['offset']}" if text == "varies" else f"token {row['offset']} {text!r}"


def patch_findings(results: pd.DataFrame, site_sets: Sequence[Mapping[str, Any]], failures: Sequence[str]) -> list[str]:
    """Return the set of sites that carries the answer of each source, and whether the controls passed.

    Args:
        results: Rows of `ghosttrace.patching.summary.summarise`.
        site_sets: `PatchResult.site_sets`.
        failures: Messages of the failed controls.
    """
    found = [site_set_text(row) for row in site_sets]
    if not found and "swap" not in set(results["intervention"]):
        found = ["No set of sites was searched, because the search needs swaps: see the table for single parts."]
    elif not found:
        found = ["No set of sites was searched, because swapping everything has no effect on the answers."]
    if failures:
        return [*found, failed_controls_text(failures)]
    return [*found, "The controls passed. Other sets of sites may carry the answer as well."]


def patch_table(results: pd.DataFrame) -> Table:
    """Return a table of carriers, tokens and the layers with the largest effect, 80 columns wide, without controls.

    Args:
        results: Rows of `ghosttrace.patching.summary.summarise`.
    """
    table = results_table(
        caption="Decrease of log2 p(the trace's own continuation), in bits, when keys (k), values (v) or both (k+v) of "
        "that part alone are sealed or swapped, with 95 % intervals over traces; share: of the effect of sealing or "
        "swapping everything; donor: answers that become the donor's. All sites: summary.json.",
    )
    table.add_column("", no_wrap=True, max_width=26)
    for name in ("k", "v", "k+v", "share", "donor"):
        table.add_column(name, justify="right", no_wrap=True)
    for (source, kind), part in results.groupby(["source", "intervention"], sort=False):
        count = part["n_traces"].max()
        table.add_section()
        table.add_row(f"[bold]{escape(str(source))}[/]", "", "", f"{kind}, {count} traces")
        shown = part[~part["control"]]
        everywhere = shown[shown["layer"] == "all"]
        layers = shown[(shown["carrier"] == "memento") & (shown["offset"] == "all") & (shown["layer"] != "all")]
        moved = layers.assign(bits=layers["bits"].abs()).groupby("layer")["bits"].max()
        best = moved[moved >= MIN_BITS_SHOWN].nlargest(TOP_LAYERS).index
        for (carrier, _), cell in everywhere.groupby(["carrier", "offset"], sort=False):
            whole = cell["offset"].iloc[0] == "all"
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
    """Format with two decimals, without a sign if they are zero."""
    return "0.00" if abs(bits) < 0.005 else f"{bits:+.2f}"


def heat_maps(results: pd.DataFrame) -> Figure:
    """Draw bits by layer and token: one column for keys, one for values, one row per intervention.

    Args:
        results: Rows of one source.
    """
    single = results[(results["offset"] != "all") & (results["layer"] != "all")]
    kinds = list(dict.fromkeys(single["intervention"]))
    tokens = list(dict.fromkeys(zip(single["carrier"], single["offset"], strict=True)))
    layers = single["layer"].nunique()
    size = 2 * (0.62 * len(tokens) + 1.0) + 0.8, len(kinds) * (0.26 * layers + 1.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(kinds), 2, squeeze=False, sharey=True)
    for line, kind in zip(axes, kinds, strict=True):
        part = single[single["intervention"] == kind]
        top = max(float(part.loc[part["kv"] != "kv", "bits"].max()), 1e-3)
        for axis, kv in zip(line, ("k", "v"), strict=True):
            cells = part[part["kv"] == kv].set_index(["layer", "carrier", "offset"])
            grid = np.array([[cells.loc[(n, *token), "bits"] for token in tokens] for n in range(layers)], dtype=float)
            image = axis.imshow(grid, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=top)
            labels = [_label({"offset": token[1], "token": cells.loc[(0, *token), "token"]}) for token in tokens]
            axis.set_xticks(range(len(tokens)), labels, rotation=30, ha="right", fontsize=7)
            axis.set_yticks(range(0, layers, max(1, layers // 12)))
            axis.set_title(f"{results['source'].iloc[0]}: {kind}, {KV_NAMES[kv]}", fontsize=9)
            if grid.size <= MAX_LABELLED_CELLS:
                _write_numbers(axis, grid, top)
        line[0].set_ylabel("layer")
        figure.colorbar(image, ax=line, label="bits of the continuation")
    return figure


def _write_numbers(axis: Any, grid: np.ndarray, top: float) -> None:
    for (layer, token), bits in np.ndenumerate(grid):
        colour = "white" if bits > 0.6 * top else "black"
        text = f"{bits:.1f}" if abs(bits) >= 0.05 else "0"
        axis.text(token, layer, text, ha="center", va="center", fontsize=6, color=colour)
