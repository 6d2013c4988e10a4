"""The findings of a probe sweep in two or three sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

KV_NAMES = {"k": "keys", "v": "values", "kv": "keys and values", "hidden": "hidden states"}


def probe_findings(results: pd.DataFrame, failures: Sequence[str]) -> list[str]:
    """Return how much the best probe of each target reads, and whether the controls passed.

    Args:
        results: Rows of `ghosttrace.probing.evidence.summarise`.
        failures: Messages of the failed controls.
    """
    headline = results[results["headline"]]
    found = [_best(str(target), rows) for target, rows in headline.groupby("target", sort=False)]
    if failures:
        return [*found, f"Do not rely on these numbers, because a control failed: {'; '.join(failures)}."]
    return [
        *found,
        "The controls passed: sealed caches, states from before the secret and shuffled labels show nothing.",
    ]


def _best(target: str, rows: pd.DataFrame) -> str:
    """Return one sentence about the best probe of a target at each hop."""
    read = rows[(rows["condition"] == "open") & (rows["probe"] != "online")]
    by_hop = [_at_hop(str(hop), part, rows) for hop, part in read.groupby("hop", sort=False)]
    return f"Of the {read['unknown'].iloc[0]:.2f} bits of {target} that the text leaves unknown: {'; '.join(by_hop)}."


def _at_hop(hop: str, read: pd.DataFrame, rows: pd.DataFrame) -> str:
    significant = read[read["significant"]]
    if significant.empty:
        return f"hop {hop}, nothing significant (upper bounds reach {read['bits_high'].max():.2f})"
    row = significant.nlargest(1, "bits").to_dict("records")[0]
    bits = f"{row['bits']:.2f} [{row['bits_low']:.2f}, {row['bits_high']:.2f}]"
    return f"hop {hop}, {bits} from {_site(row)} (sealed: {_sealed(row, rows)})"


def _site(row: Mapping[Any, Any]) -> str:
    layer = "all layers together" if row["layer"] == "joint" else f"layer {row['layer']}"
    head = "" if row["head"] in ("all", "") else f", head {row['head']}"
    return f"the {KV_NAMES[row['kv']]} of {layer}{head}, {row['carrier']}"


def _sealed(row: Mapping[Any, Any], rows: pd.DataFrame) -> str:
    same = rows[rows["condition"] == "sealed"]
    for name in ("carrier", "hop", "layer", "kv", "head", "probe"):
        same = same[same[name] == row[name]]
    return f"{same['bits'].iloc[0]:.2f}" if len(same) else "not measured"
