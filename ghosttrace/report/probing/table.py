"""Rich table of probe results."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from ghosttrace.report.tables import results_table


def probe_table(results: pd.DataFrame, configuration: Mapping[str, Any]) -> Table:
    """Return a table of the best site of each target and hop: one row per probe, beside text and sealed cache.

    The best site is the one with the highest score on validation.

    Args:
        results: Rows of `ghosttrace.probing.evidence.summarise`.
        configuration: Content of run.json.
    """
    paired = "swapped" in set(results["condition"])
    control = "swapped: with other blocks, the same text" if paired else "sealed: the same probe on a sealed cache"
    table = results_table(
        caption="Accuracy in % and bits beyond the text per target, on "
        f"{_test_set(results, configuration)}, at the site with the best validation score; * p <= 0.05 after Holm "
        f"over the sweep and more than 0.01 bits; online: prequential code length; {control}. text and exact: bits "
        "beyond the class frequencies, of the fitted text baseline and of the exact posterior given the text. All "
        "sites: summary.json.",
    )
    for name in ("carrier", "hop", "site", "probe"):
        table.add_column(name, overflow="fold")
    for name in ("accuracy", "bits beyond the text", "swapped" if paired else "sealed"):
        table.add_column(name, justify="right", no_wrap=True)
    for target, part in results[results["headline"]].groupby("target", sort=False):
        rows = part.drop(columns="target")
        table.add_section()
        first = rows[rows["condition"] == "open"].iloc[0]
        chance, unknown = f"{100 * first['chance']:.1f} by chance", f"of {first['unknown']:.2f} unknown"
        table.add_row(f"[bold]{escape(str(target))}[/]", "", "", "", chance, unknown, "")
        for row in rows[rows["condition"].isin(["text", "exact"])].to_dict("records"):
            _add(table, row, rows)
        for row in rows[rows["condition"] == "decoder"].nlargest(1, "bits").to_dict("records"):
            _add(table, row, rows)
        for row in best_rows(rows).to_dict("records"):
            _add(table, row, rows)
    return table


def _test_set(results: pd.DataFrame, configuration: Mapping[str, Any]) -> str:
    """Say how many test samples there are, and which clusters the intervals resample."""
    clusters = "base traces" if str(configuration["split"]["shares no"]).startswith("base trace") else "secrets"
    samples, groups = results["n_test"].max(), results["n_clusters"].max()
    return f"{samples:,.0f} test samples with 95 % intervals over their {groups:,.0f} {clusters}"


def best_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Select the rows of one target that the table shows.

    Returns:
        The row of the memento before the secret (`causal` or `earlier`) with the most bits, and at each hop all probes
        of the site with the best validation score.
    """
    parts = []
    for (_, hop), part in rows.groupby(["carrier", "hop"], sort=False):
        if int(str(hop)) < 0:
            parts.append(part[part["condition"].isin(["causal", "earlier"])].nlargest(1, "bits"))
            continue
        online = part[(part["condition"] == "open") & (part["probe"] == "online")]
        site = online[["layer", "kv", "head"]].iloc[:1]
        parts.append(part[part["condition"] == "open"].merge(site))
    return pd.concat(parts) if parts else rows.iloc[:0]


def control_row(row: Mapping[Any, Any], rows: pd.DataFrame) -> dict[str, Any]:
    """Return the row of the negative control, sealed or swapped, at the site and with the probe of a row, or {}."""
    same = rows[rows["condition"].isin(["sealed", "swapped"])]
    for name in ("carrier", "hop", "layer", "kv", "head", "probe"):
        same = same[same[name] == row[name]]
    return {str(name): value for name, value in same.iloc[0].items()} if len(same) else {}


def _add(table: Table, row: Mapping[Any, Any], rows: pd.DataFrame) -> None:
    """Add a row to the table."""
    same = control_row(row, rows)
    is_text = row["probe"] in ("text", "exact")
    site = row["layer"] + " " + row["kv"] + ("" if row["head"] in ("all", "") else f" h{row['head']}")
    table.add_row(
        row["carrier"] if row["condition"] == "open" else row["condition"],
        "" if is_text else str(row["hop"]),
        site,
        "" if is_text else escape(row["probe"]),
        f"{100 * row['accuracy']:.1f} [{100 * row['accuracy_low']:.1f},{100 * row['accuracy_high']:.1f}]",
        f"{row['bits']:+.3f} [{row['bits_low']:+.3f},{row['bits_high']:+.3f}]{'*' if row['significant'] else ' '}",
        f"{same['bits']:+.2f}" if same and row["condition"] != "decoder" else "",
    )
