"""The findings of a probe sweep in two or three sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ghosttrace.report.findings import KV_NAMES, failed_controls_text
from ghosttrace.report.probing.table import best_rows

CONTROLS = {
    "sealed": "sealed caches",
    "causal": "states from before the secret",
    "shuffled": "shuffled labels",
}


def probe_findings(results: pd.DataFrame, failures: Sequence[str]) -> list[str]:
    """Return what the probes read of each target at each hop, and whether the controls passed.

    The site of a hop is the one with the best validation score, as in `probe_table`.

    Args:
        results: Rows of `ghosttrace.probing.evidence.summarise`.
        failures: Messages of the failed controls.
    """
    headline = results[results["headline"]]
    found = [_target(str(target), rows) for target, rows in headline.groupby("target", sort=False)]
    if failures:
        return [*found, failed_controls_text(failures)]
    measured = [name for condition, name in CONTROLS.items() if condition in set(results["condition"])]
    return [
        *found,
        f"The controls passed: nothing significant was found in {', '.join(measured)}. The probes learned from "
        f"{results['n_train'].max():,.0f} samples; with more samples they may read more.",
    ]


def _target(target: str, rows: pd.DataFrame) -> str:
    """Return one sentence about what is read of a target at each hop."""
    shown = best_rows(rows)
    shown = shown[(shown["condition"] == "open") & (shown["probe"] != "online")]
    hops = [_hop(str(hop), part, rows) for hop, part in shown.groupby("hop", sort=False)]
    return f"Beyond the text, probes read of {target}: {'; '.join(hops) or 'nothing was measured'}."


def _hop(hop: str, read: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Describe the probe with the most bits at the site chosen on validation."""
    row = read.nlargest(1, "bits").to_dict("records")[0] if read["bits"].notna().any() else read.iloc[0].to_dict()
    bits = f"{row['bits']:.2f} [{row['bits_low']:.2f}, {row['bits_high']:.2f}] of {row['unknown']:.2f} bits"
    significance = "" if row["significant"] else ", not significant"
    return f"hop {hop}, {bits}{significance}, from {_site(row)} (sealed: {_sealed(row, rows)})"


def _site(row: Mapping[Any, Any]) -> str:
    layer = "all layers together" if row["layer"] == "joint" else f"layer {row['layer']}"
    head = "" if row["head"] in ("all", "") else f", head {row['head']}"
    return f"the {KV_NAMES[row['kv']]} of {layer}{head}, {row['carrier']}"


def _sealed(row: Mapping[Any, Any], rows: pd.DataFrame) -> str:
    same = rows[rows["condition"] == "sealed"]
    for name in ("carrier", "hop", "layer", "kv", "head", "probe"):
        same = same[same[name] == row[name]]
    return f"{same['bits'].iloc[0]:.2f}" if len(same) else "not measured"
