"""Summary of measured traces: mean bits per token with intervals, and failed controls."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from ghosttrace.ablation.arms import Arm
from ghosttrace.stats import ratio_estimate

DISTANCE_BIN_STARTS = (1, 2, 5, 17, 65, 257)
"""First distance of each group of distances, in tokens after the memento."""
ROUNDING_TOLERANCE_BITS = 1e-3
"""Mean change in bits per token that is attributed to the numerics of recomputation."""


def summarise(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return mean ghost bits by source and arm: over all tokens, by kind, by block and by distance.

    Args:
        rows: records of layout `BITS_TABLE`.

    Returns:
        One row per source, arm, `by` (all, kind, block or distance) and `group`, with these columns:
        - n_traces, n_tokens: size of the group.
        - bits, bits_low, bits_high: mean bits per token with a 95 % interval over traces (missing for a single trace).
        - bits_per_trace: mean over traces of the sum of bits in the group.
        - cross_entropy: mean over traces of the sum of -log2 p under the arm, in bits.
    """
    parts = [_trace_totals(row) for row in rows]
    if not any(len(part) for part in parts):
        return pd.DataFrame()
    totals = pd.concat(parts)
    summary_rows = []
    for (source, arm, by, group), part in totals.groupby(["source", "arm", "by", "group"], sort=False):
        mean = ratio_estimate(part["bits"].to_numpy(float), part["count"].to_numpy(float))
        row = {"source": source, "arm": arm, "by": by, "group": group}
        row |= {"n_traces": len(part), "n_tokens": int(part["count"].sum())}
        row |= {"bits": mean.value, "bits_low": mean.low, "bits_high": mean.high}
        summary_rows.append(row | {"bits_per_trace": part["bits"].mean(), "cross_entropy": part["surprise"].mean()})
    table = pd.DataFrame(summary_rows)
    rank = pd.DataFrame({name: pd.factorize(table[name])[0] for name in ("source", "arm", "by")})
    return table.iloc[np.lexsort((rank["by"], rank["arm"], rank["source"]))].reset_index(drop=True)


def _trace_totals(row: dict[str, Any]) -> pd.DataFrame:
    """Return the ghost bits and surprise of one trace, summed over all tokens and by kind, block and distance."""
    distance_bins = np.searchsorted(DISTANCE_BIN_STARTS, np.array(row["distance"], dtype=np.int64), side="right") - 1
    labels = [f"{a}-{b - 1}" if b - 1 > a else str(a) for a, b in pairwise(DISTANCE_BIN_STARTS)] + [
        f"{DISTANCE_BIN_STARTS[-1]}-"
    ]
    surprise = -np.array(row["log2p_arm"], dtype=float)
    table = pd.DataFrame({"bits": np.array(row["log2p_memento"], dtype=float) + surprise, "surprise": surprise})
    groups = {"all": ["all"] * len(table), "kind": row["kind"], "block": row["block"]}
    groups["distance"] = [labels[index] for index in distance_bins]
    frames = []
    for by, keys in groups.items():
        sums = table.groupby(np.array(keys, dtype=str), sort=False).agg(
            bits=("bits", "sum"), surprise=("surprise", "sum"), count=("bits", "size")
        )
        frames.append(sums.reset_index(names="group").assign(by=by, arm=row["arm"], source=row["source"]))
    return pd.concat(frames)


def failed_controls(
    results: pd.DataFrame, arms: Mapping[str, Arm], ceilings: Mapping[str, float | None]
) -> tuple[str, ...]:
    """Return one sentence for each control that failed.

    Two controls are checked. A control arm such as `placebo` must not differ from `memento`. Where the best possible
    accuracy over a sealed cache is known (`ledger`: 10**-h), a sealed arm must not predict the answers with a
    cross-entropy below -log2 of that accuracy.

    Args:
        results: the table returned by `summarise`.
        arms: the arms that were compared with `memento`, by name.
        ceilings: best possible accuracy over a sealed cache by source; None where it is not known.
    """
    failures = []
    for row in results.to_dict("records"):
        differs = abs(row["bits"]) > ROUNDING_TOLERANCE_BITS and not row["bits_low"] <= 0 <= row["bits_high"]
        if arms[row["arm"]].control and row["by"] == "all" and differs:
            failures.append(f"{row['source']}: {row['arm']} differs from memento by {row['bits']:+.4f} bits per token")
        ceiling = ceilings.get(row["source"])
        if ceiling is not None and arms[row["arm"]].sealed and (row["by"], row["group"]) == ("kind", "answer"):
            minimum, tokens_per_trace = -np.log2(ceiling), row["n_tokens"] / row["n_traces"]
            slack = (row["bits_high"] - row["bits"]) * tokens_per_trace
            if row["cross_entropy"] + slack < minimum - ROUNDING_TOLERANCE_BITS:
                failures.append(
                    f"{row['source']}: {row['arm']} predicts answers with {row['cross_entropy']:.2f} bits per trace, "
                    f"below the minimum of {minimum:.2f} bits for a sealed cache"
                )
    return tuple(failures)
