"""Rich table, sentence and heat maps of patching results."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from ghosttrace.report.figure import Figure
from ghosttrace.report.findings import KV_NAMES, failed_controls_text
from ghosttrace.report.tables import results_table

MIN_BITS_SHOWN = 0.005  # layers with a smaller effect are not in the table
MIN_OVERSHOOT_SHOWN = 0.005  # smaller shares beyond the whole effect are not shown
MAIN_CARRIERS = ("memento", "carriers")  # under Memento's law and under others: their layers are in the table
TOP_LAYERS = 5  # rows of the table; the heat maps show all layers
MAX_LABELLED_CELLS = 120  # larger heat maps have no numbers in their cells


def site_set_text(row: Mapping[str, Any], unit: str = "block") -> str:
    """Describe in words which sites were swapped together, what this reproduces, and what swapping the rest does.

    Args:
        row: An entry of `PatchResult.site_sets`.
        unit: `PatchResult.unit`.
    """
    named = [f"layer {site['layer']} {KV_NAMES[site['kv']]} at {_label(site)}" for site in row["sites"][:8]]
    more = f", and {len(row['sites']) - 8} more" if len(row["sites"]) > 8 else ""
    count = len(row["sites"])
    sites = "1 site" if count == 1 else f"{count} sites together"
    found = "none of these sites can be dropped" if row["enough"] else "all sites together did not reproduce enough"
    return (
        f"On {row['source']}, {unit} {row['block']}, swapping {sites} reproduces {_share_text(row, '')} of the effect "
        f"of swapping everything{_flipped_text(row, '')}; swapping everything else reproduces "
        f"{_share_text(row, 'rest_')}{_flipped_text(row, 'rest_')} ({row['n_traces']} traces). On the "
        f"traces of the search, {found}: {', '.join(named)}{more}."
    )


def _share_text(row: Mapping[str, Any], prefix: str) -> str:
    """Return the recovered share with its interval, and the share beyond the whole effect unless it rounds to 0."""
    value, low, high, overshoot = (
        row[f"{prefix}{name}"] for name in ("recovered", "recovered_low", "recovered_high", "overshoot")
    )
    interval = "" if None in (low, high) else f" [{100 * low:.0f}, {100 * high:.0f}]"
    beyond = f" (and goes beyond it by {100 * overshoot:.0f} %)" if overshoot >= MIN_OVERSHOOT_SHOWN else ""
    return f"{100 * value:.0f}{interval} %{beyond}"


def _flipped_text(row: Mapping[str, Any], prefix: str) -> str:
    """Return how many continuations become the donor's; empty if that is unknown."""
    if row[f"{prefix}flipped"] is None:
        return ""
    total = f" ({row['everything_flipped']} under swapping everything)" if not prefix else ""
    return f" and turns {row[f'{prefix}flipped']} of {row['n_traces']} continuations into the donor's{total}"


def _label(row: Mapping[Any, Any]) -> str:
    """Return a token's text, with its index in the carrier unless the text identifies it."""
    text = str(row["token"])
    if row["offset"] == "all" or re.fullmatch(r"<.+>|run \d+", text):
        return text
    return f"token {row['offset']}" if text == "varies" else f"token {row['offset']} {text!r}"


def patch_findings(
    results: pd.DataFrame, site_sets: Sequence[Mapping[str, Any]], failures: Sequence[str], unit: str = "block"
) -> list[str]:
    """Return the set of sites that carries the answer for each source and block, and whether the controls passed.

    Args:
        results: Rows of `ghosttrace.patching.summary.summarise`.
        site_sets: `PatchResult.site_sets`.
        failures: Messages of the failed controls.
        unit: `PatchResult.unit`.
    """
    found = [site_set_text(row, unit) for row in site_sets]
    swaps = results[results["intervention"] == "swap"]
    searched = {(row["source"], row["block"]) for row in site_sets}
    pairs = dict.fromkeys(zip(swaps["source"], swaps["block"], strict=True))
    without = [f"{source}, {unit} {block}" for source, block in pairs if (source, block) not in searched]
    if swaps.empty:
        found = ["No set of sites was searched, because the search needs swaps: see the table for single parts."]
    elif without:
        where = "; ".join(without)
        found.append(
            "No set of sites was searched where swapping everything had no significant effect on the traces of the "
            f"search (few traces may be the reason): {where}."
        )
    if failures:
        return [*found, failed_controls_text(failures)]
    return [*found, "The controls passed. Other sets of sites may carry the answer as well."]


def patch_table(results: pd.DataFrame, unit: str = "block") -> Table:
    """Return a table of carriers and of the layers with the largest effect, 80 columns wide, without controls.

    Single tokens are shown if one block was patched.

    Args:
        results: Rows of `ghosttrace.patching.summary.summarise`.
        unit: `PatchResult.unit`.
    """
    one_block = results["block"].nunique() == 1
    table = results_table(
        caption="Decrease of log2 p(the trace's own continuation), in bits, when keys (k), values (v) or both (k+v) of "
        "that part alone are sealed or swapped, with 95 % intervals over traces; share: of the effect of sealing or "
        "swapping everything, at most 100 %, +n: n % beyond it; donor: continuations that become the donor's. Shares "
        f"need not add up. {'' if one_block else 'Single tokens: --block N. '}All sites: summary.json.",
    )
    table.add_column("", overflow="fold", max_width=26)
    for name in ("k", "v", "k+v", "share", "donor"):
        table.add_column(name, justify="right", no_wrap=True)
    for (source, block, kind), part in results.groupby(["source", "block", "intervention"], sort=False):
        count = part["n_traces"].max()
        table.add_section()
        table.add_row(f"[bold]{escape(str(source))}, {unit} {block}[/]", "", "", f"{kind}, {count} traces")
        shown = part[~part["control"]]
        everywhere = shown[(shown["layer"] == "all") & (one_block | (shown["offset"] == "all"))]
        layers = shown[shown["carrier"].isin(MAIN_CARRIERS) & (shown["offset"] == "all") & (shown["layer"] != "all")]
        moved = layers.assign(bits=layers["bits"].abs()).groupby("layer")["bits"].max()
        best = moved[moved >= MIN_BITS_SHOWN].nlargest(TOP_LAYERS).index
        for (carrier, _), cell in everywhere.groupby(["carrier", "offset"], sort=False):
            whole = cell["offset"].iloc[0] == "all"
            table.add_row(str(carrier) if whole else f"  {escape(_label(cell.iloc[0].to_dict()))}", *_columns(cell))
        for layer in sorted(best):
            cell = layers[layers["layer"] == layer]
            table.add_row(f"{cell['carrier'].iloc[0]}, layer {layer}", *_columns(cell))
    return table


def _columns(cell: pd.DataFrame) -> list[str]:
    rows = {row["kv"]: row for row in cell.to_dict("records")}
    both = rows["kv"]
    ends = "" if pd.isna(both["bits_low"]) else f" [{_signed(both['bits_low'])}, {_signed(both['bits_high'])}]"
    shares = ["" if pd.isna(both[name]) else f"{round(100 * both[name])} %" for name in ("recovered", "follows_donor")]
    if shares[0] and both["overshoot"] >= MIN_OVERSHOOT_SHOWN:
        shares[0] += f" +{round(100 * both['overshoot'])}"
    return [_signed(rows["k"]["bits"]), _signed(rows["v"]["bits"]), _signed(both["bits"]) + ends, *shares]


def _signed(bits: float) -> str:
    """Format with two decimals, without a sign if they are zero."""
    return "0.00" if abs(bits) < 0.005 else f"{bits:+.2f}"


def heat_maps(results: pd.DataFrame, unit: str = "block") -> Figure:
    """Draw bits by layer and token: one column for keys, one for values, one row per intervention.

    Args:
        results: Rows of one source and block.
        unit: `PatchResult.unit`.
    """
    single = results[(results["offset"] != "all") & (results["layer"] != "all")]
    kinds = list(dict.fromkeys(single["intervention"]))
    title = f"{results['source'].iloc[0]}, {unit} {results['block'].iloc[0]}"
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
            axis.set_title(f"{title}: {kind}, {KV_NAMES[kv]}", fontsize=9)
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
