"""From measured traces to findings: mean bits per token with intervals, and whether the controls held."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from ghosttrace.ablation.arms import Arm
from ghosttrace.stats import ratio_estimate

DISTANCE_BIN_STARTS = (1, 2, 5, 17, 65, 257)  # lower ends of the groups of distances
ROUNDING_TOLERANCE_BITS = 1e-3  # bits per token that recomputation may shift on average


def summarise(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Mean bits a token, by source and arm: over all, by kind, by block and by distance.

    Args:
        rows: of `BITS_TABLE`.

    Returns:
        One row per source, arm, `by` (all, kind, block, distance) and `group`: n_traces, n_tokens, bits
        (mean a token, with a 95 % interval that resamples traces; missing for a single trace),
        bits_per_trace (the mean over traces of their sum), and cross_entropy, -log2 p a trace.
    """
    parts = [_totals(row) for row in rows]
    if not any(len(part) for part in parts):
        return pd.DataFrame()
    totals = pd.concat(parts)
    found = []
    for (source, arm, by, group), part in totals.groupby(["source", "arm", "by", "group"], sort=False):
        mean = ratio_estimate(part["bits"].to_numpy(float), part["count"].to_numpy(float))
        row = {"source": source, "arm": arm, "by": by, "group": group}
        row |= {"n_traces": len(part), "n_tokens": int(part["count"].sum())}
        row |= {"bits": mean.value, "bits_low": mean.low, "bits_high": mean.high}
        found.append(row | {"bits_per_trace": part["bits"].mean(), "cross_entropy": part["surprise"].mean()})
    table = pd.DataFrame(found)
    rank = pd.DataFrame({name: pd.factorize(table[name])[0] for name in ("source", "arm", "by")})
    return table.iloc[np.lexsort((rank["by"], rank["arm"], rank["source"]))].reset_index(drop=True)


def _totals(row: dict[str, Any]) -> pd.DataFrame:
    """Sums over one trace by every grouping."""
    reach = np.searchsorted(DISTANCE_BIN_STARTS, np.array(row["distance"], dtype=np.int64), side="right") - 1
    labels = [f"{a}-{b - 1}" if b - 1 > a else str(a) for a, b in pairwise(DISTANCE_BIN_STARTS)] + [
        f"{DISTANCE_BIN_STARTS[-1]}-"
    ]
    surprise = -np.array(row["log2p_arm"], dtype=float)
    table = pd.DataFrame({"bits": np.array(row["log2p_memento"], dtype=float) + surprise, "surprise": surprise})
    groups = {"all": ["all"] * len(table), "kind": row["kind"], "block": row["block"]}
    groups["distance"] = [labels[place] for place in reach]
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
    """The controls that did not hold, in words.

    A control arm such as `placebo` must change nothing. And where the best accuracy over a sealed cache is known
    (`ledger`: one in 10**h), the cross-entropy of the answers cannot be below its bits.

    Args:
        results: of `summarise`.
        arms: those that were compared with `memento`, by name.
        ceilings: for each source the best accuracy over a sealed cache, where it is known.
    """
    failures = []
    for row in results.to_dict("records"):
        moved = abs(row["bits"]) > ROUNDING_TOLERANCE_BITS and not row["bits_low"] <= 0 <= row["bits_high"]
        if arms[row["arm"]].control and row["by"] == "all" and moved:
            failures.append(f"{row['source']}: {row['arm']} moved {row['bits']:+.4f} bits a token")
        ceiling = ceilings.get(row["source"])
        if ceiling is not None and arms[row["arm"]].sealed and (row["by"], row["group"]) == ("kind", "answer"):
            least, count = -np.log2(ceiling), row["n_tokens"] / row["n_traces"]
            slack = (row["bits_high"] - row["bits"]) * count
            if row["cross_entropy"] + slack < least - ROUNDING_TOLERANCE_BITS:
                failures.append(
                    f"{row['source']}: {row['arm']} predicts answers at {row['cross_entropy']:.2f} bits, and a sealed "
                    f"cache leaves {least:.2f}"
                )
    return tuple(failures)
