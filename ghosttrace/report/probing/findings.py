"""The findings of a probe sweep in two or three sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ghosttrace.report.findings import KV_NAMES, failed_controls_text
from ghosttrace.report.probing.table import best_rows, control_row

CONTROLS = {
    "sealed": "sealed caches",
    "swapped": "caches computed with other blocks",
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
    if "decoder" in set(results["condition"]):
        found.append(_decoder(headline))
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


def _decoder(rows: pd.DataFrame) -> str:
    """Say what the decoders of the text read and are still short of."""
    reserve, unknown = (rows.loc[rows["condition"] == "open", name] for name in ("reserve", "unknown"))
    text = rows[rows["condition"] == "text"]["unknown"]
    return (
        f"The text is read by probes of sealed states, which leave {unknown.min():.2f} of the {text.max():.2f} bits "
        f"that class frequencies leave; from the second half of their traces they gained {reserve.max():.2f} bits, and "
        "an open cache has to exceed that to count as significant."
    )


def _hop(hop: str, read: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Describe the probe with the most bits at the site chosen on validation."""
    row = read.nlargest(1, "bits").to_dict("records")[0] if read["bits"].notna().any() else read.iloc[0].to_dict()
    if row["bits"] == row["bits_low"] == row["bits_high"] == 0:
        return (
            f"hop {hop}, nothing: no gain on validation, so the prediction from the text was kept, which is no "
            f"measurement of 0 bits ({row['n_train']:,.0f} training samples, {row['n_clusters']} traces in test)"
        )
    bits = f"{row['bits']:.2f} [{row['bits_low']:.2f}, {row['bits_high']:.2f}] of {row['unknown']:.2f} bits"
    significance = "" if row["significant"] else ", not significant"
    return f"hop {hop}, {bits}{significance}, from {_site(row)} ({_control_bits(row, rows)})"


def _site(row: Mapping[Any, Any]) -> str:
    layer = "all layers together" if row["layer"] == "joint" else f"layer {row['layer']}"
    head = "" if row["head"] in ("all", "") else f", head {row['head']}"
    return f"the {KV_NAMES[row['kv']]} of {layer}{head}, {row['carrier']}"


def _control_bits(row: Mapping[Any, Any], rows: pd.DataFrame) -> str:
    """Return the bits of the negative control at the site and with the probe of a row."""
    same = control_row(row, rows)
    return f"{same['condition']}: {same['bits']:.2f}" if same else "sealed: not measured"
