"""Matplotlib figures of a probe run; those of an invalid run are marked INVALID."""

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from ghosttrace.report.figure import Figure

STYLES = {  # condition and probe: colour, marker, label
    ("open", "linear"): ("#1b6e53", "o", "open, linear"),
    ("open", "mlp"): ("#57a773", "s", "open, MLP"),
    ("open", "online"): ("#2b6cb0", "^", "open, online code"),
    ("sealed", "linear"): ("#b3392f", "o", "sealed, linear"),
    ("sealed", "mlp"): ("#d77a61", "s", "sealed, MLP"),
    ("swapped", "linear"): ("#b3392f", "o", "other blocks, linear"),
    ("swapped", "mlp"): ("#d77a61", "s", "other blocks, MLP"),
    ("causal", "linear"): ("#7a7a7a", "x", "before the secret"),
    ("earlier", "linear"): ("#7a7a7a", "x", "before the block"),
}
BEFORE = ["causal", "earlier"]  # conditions of rows at hop -1
COLOURS = ("#8c6bb1", "#d8a24a", "#c05a9d", "#a0522d")  # of user-defined probes


def mark_invalid(figure: Figure, valid: bool) -> None:
    """Write INVALID across a figure if the run is not valid."""
    if not valid:
        figure.text(
            0.5, 0.5, "INVALID", fontsize=44, color="#b3392f", alpha=0.35, rotation=20, ha="center", va="center"
        )


def heat_figure(results: pd.DataFrame, valid: bool) -> Figure:
    """Draw bits beyond the text by layer and hop, from linear probes on all heads.

    Each target has a row of panels, each kind of state and condition a column. A dot marks cells that are not
    significant.

    Args:
        results: Rows of `ghosttrace.probing.evidence.summarise`.
        valid: Whether every control held.
    """
    rows = results[(results["head"] == "all") & (results["probe"] == "linear") & results["layer"].ne("joint")]
    targets, kinds = headline_targets(results), list(dict.fromkeys(rows.loc[rows["condition"] == "open", "kv"]))
    control = "swapped" if "swapped" in set(rows["condition"]) else "sealed"
    columns = [(condition, kv) for kv in kinds for condition in ("open", control)]
    width = 2.2 * len(columns) + 1.2
    figure = Figure(figsize=(max(4.5, width), 1.0 + 1.9 * len(targets)), layout="constrained")
    grid = figure.subplots(len(targets), len(columns), squeeze=False, sharex=True, sharey=True)
    for line, target in zip(grid, targets, strict=True):
        part = rows[(rows["target"] == target) & rows["condition"].isin(["open", control, *BEFORE])]
        highest = max(0.05, part["bits"].max())
        for axis, (condition, kv) in zip(line, columns, strict=True):
            before = [] if condition == "swapped" else BEFORE  # a swapped cache has its own rows at hop -1
            panel = part[(part["kv"] == kv) & part["condition"].isin([condition, *before])]
            image = draw_heat(axis, panel, highest, "hop")
            axis.set_title(f"{target}\n{kv.upper() if kv != 'hidden' else kv}, {condition}", fontsize=8)
        figure.colorbar(image, ax=line.tolist(), label="bits beyond the text", shrink=0.9)
    for axis in grid[-1]:
        axis.set_xlabel("hop (-1: before)", fontsize=8)
    for axis in grid[:, 0]:
        axis.set_ylabel("layer", fontsize=8)
    mark_invalid(figure, valid)
    return figure


def headline_targets(results: pd.DataFrame) -> list[str]:
    """Return the targets that tables and figures show, in order."""
    return list(dict.fromkeys(results.loc[results["headline"], "target"]))


def draw_heat(axis: Axes, rows: pd.DataFrame, highest: float, across: str) -> AxesImage:
    """Draw one heat map of bits.

    Args:
        axis: Axes to draw on.
        rows: Rows of results; several rows of one cell are reduced to their maximum.
        highest: Upper end of the colour scale, in bits.
        across: Column of `rows` along the horizontal axis; layers run upwards.

    Returns:
        The image, for a colour bar.
    """
    cells = rows.assign(layer=rows["layer"].astype(int)).groupby(["layer", across])
    bits, significant = cells["bits"].max().unstack(), cells["significant"].min().unstack(fill_value=False)
    image = axis.imshow(bits, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=highest)
    for y, x in np.argwhere(bits.notna().to_numpy() & ~significant.to_numpy(dtype=bool)):
        axis.text(x, y, "·", color="white", ha="center", va="center")
    axis.set_xticks(range(bits.shape[1]), bits.columns)
    layers = bits.index.to_list()
    step = max(1, len(layers) // 12)
    axis.set_yticks(range(0, len(layers), step), layers[::step])
    axis.tick_params(labelsize=7)
    return image


def curves_figure(results: pd.DataFrame, valid: bool) -> Figure:
    """Draw bits by hop at the best site of each hop, with intervals, one panel per target.

    Args:
        results: Rows of `ghosttrace.probing.evidence.summarise`.
        valid: Whether every control held.
    """
    targets = headline_targets(results)
    figure = Figure(figsize=(3.4 * len(targets) + 1.6, 3.2), layout="constrained")
    axes = figure.subplots(1, len(targets), squeeze=False)[0]
    for axis, target in zip(axes, targets, strict=True):
        rows = results[results["target"] == target]
        online = rows[(rows["probe"] == "online") & (rows["condition"] == "open")]
        best = online[["carrier", "hop", "layer", "kv", "head"]]
        chosen = pd.concat([rows.merge(best), rows[rows["condition"].isin(BEFORE)]])
        for number, ((condition, probe), (colour, marker, label)) in enumerate(styles_of(results).items()):
            part = chosen[(chosen["condition"] == condition) & (chosen["probe"] == probe)]
            if condition in BEFORE:
                part = part.nlargest(1, "bits")
            if part.empty:
                continue
            part = part.sort_values("hop")
            spread = [(part["bits"] - part["bits_low"]).tolist(), (part["bits_high"] - part["bits"]).tolist()]
            at = part["hop"] + 0.06 * (number - 2.5)
            axis.errorbar(at, part["bits"], spread, color=colour, marker=marker, markersize=4, label=label, capsize=2)
        unknown = rows.loc[rows["condition"] == "open", "unknown"].mean()
        axis.axhline(unknown, color="black", linestyle="--", linewidth=0.8)
        axis.axhline(0, color="black", linewidth=0.7)
        axis.set(
            title=f"{target} (dashed: {unknown:.2f} bits unknown)", xlabel="hop", xticks=sorted(set(chosen["hop"]))
        )
        axis.title.set_fontsize(8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("bits beyond the text")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7, frameon=False)
    mark_invalid(figure, valid)
    return figure


def styles_of(results: pd.DataFrame) -> dict[tuple[str, str], tuple[str, str, str]]:
    """Return colour, marker and label by condition and probe; user-defined probes come last."""
    known = {probe for _, probe in STYLES}
    others = [name for name in dict.fromkeys(results["probe"]) if name not in (*known, "text", "exact")]
    colours = dict(zip(others, cycle(COLOURS)))
    open_styles = {("open", name): (colours[name], "D", f"open, {name}") for name in others}
    return STYLES | open_styles | {("sealed", name): (colours[name], "v", f"sealed, {name}") for name in others}


def heads_figure(results: pd.DataFrame, valid: bool) -> Figure:
    """Draw bits by layer and head, from linear probes on the open cache.

    Each target and hop has a row of panels; keys and values have a column each.

    Args:
        results: Rows of `ghosttrace.probing.evidence.summarise`.
        valid: Whether every control held.
    """
    rows = results[(results["condition"] == "open") & results["head"].str.isdigit()]
    rows = rows.assign(head=rows["head"].astype(int))
    lines = [(target, hop) for target in headline_targets(results) for hop in sorted(set(rows["hop"]))]
    kinds = list(dict.fromkeys(rows["kv"]))
    figure = Figure(figsize=(2.6 * len(kinds) + 1.6, 1.9 * len(lines) + 0.6), layout="constrained")
    grid = figure.subplots(len(lines), len(kinds), squeeze=False)
    for line, (target, hop) in zip(grid, lines, strict=True):
        part = rows[(rows["target"] == target) & (rows["hop"] == hop)]
        for axis, kv in zip(line, kinds, strict=True):
            image = draw_heat(axis, part[part["kv"] == kv], max(0.05, part["bits"].max()), "head")
            axis.set_title(f"{target}, hop {hop}, {kv.upper()}", fontsize=8)
        figure.colorbar(image, ax=line.tolist(), label="bits", shrink=0.9)
    for axis in grid[-1]:
        axis.set_xlabel("key-value head", fontsize=8)
    mark_invalid(figure, valid)
    return figure
