"""From patched traces to results: what each site is worth, and whether the controls held."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ghosttrace.patching.cases import ALL, PatchSite
from ghosttrace.stats import Estimate, estimate, holm, ratio_estimate

WHOLE_CACHE = PatchSite("everything")
ROUNDING_TOLERANCE_BITS = 1e-3  # bits a trace that recomputation may shift
TOLERATED_SHARE = 0.05  # and, where number formats are coarse, of the size of what patching everything does
MIN_EFFECT_BITS = 0.1  # bits; a share is not taken of less
RESULT_COLUMNS = (
    *("source", "intervention", "carrier", "place", "token", "layer", "kv", "n_traces"),
    *("bits", "bits_low", "bits_high", "size", "by_token"),
    *("follows_donor", "follows_low", "follows_high", "keeps_original"),
    *("recovered", "recovered_low", "recovered_high", "p", "p_holm", "control"),
)


def summarise(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """What each site is worth, by source and intervention.

    Args:
        rows: of `PATCH_TABLE`.

    Returns:
        One row per source, intervention, carrier, place, layer and kv (`all` where all are meant), with
        the token's text (`varies` where traces differ in it): n_traces; bits, the mean over traces by
        which log2 p of their own continuation falls, with a 95 % interval; size, the mean of its absolute
        value; by_token, bits for each token of it where all traces have as many; follows_donor and
        keeps_original, the shares of greedy answers that are the donor's and that stay (an answer that
        both share counts as kept); recovered, the share of what patching everything does to log2 p(own)
        - log2 p(donor's answer), where that is anything; p of no effect on bits (t test over traces), and
        p_holm, adjusted over the sites; control, whether the row must be zero; valid, whether the controls of its
        source held. The carrier `arm` is the gap between patching everything and the arm that does the same.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["source"], row["intervention"]), []).append(row)
    found = [line for (source, name), group in groups.items() for line in _result_rows(source, name, group)]
    results = pd.DataFrame(found, columns=list(RESULT_COLUMNS))
    broken = {source for source, _ in _failures(results)}
    results["valid"] = ~results["source"].isin(broken)
    return results


def _result_rows(source: str, name: str, group: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    cells: dict[PatchSite, list[tuple[dict[str, Any], int]]] = {}
    for row in group:
        for at, site in enumerate(map(PatchSite, row["carrier"], row["place"], row["layer"], row["kv"])):
            cells.setdefault(site, []).append((row, at))
    whole = {id(row): _effect_bits(row, at) for row, at in cells[WHOLE_CACHE]}
    lines = [{"source": source, "intervention": name} | _result_row(site, cell, whole) for site, cell in cells.items()]
    gap = np.array([row["log2p_own"][at] - row["arm"] for row, at in cells[WHOLE_CACHE]])
    arm = {"source": source, "intervention": name, "carrier": "arm", "place": "all", "token": "all", "layer": "all"}
    lines.append(arm | {"kv": "kv", "n_traces": len(group)} | _bits(gap))
    for line in lines:
        line["control"] = is_control(line)
    tested = [line for line in lines if not line["control"] and line["p"] is not None]
    for line, p in zip(tested, holm([line["p"] for line in tested]), strict=True):
        line["p_holm"] = p
    return lines


def _result_row(
    site: PatchSite, cell: Sequence[tuple[dict[str, Any], int]], whole: Mapping[int, float]
) -> dict[str, Any]:
    tokens = list(dict.fromkeys(row["token"][at] for row, at in cell))
    line: dict[str, Any] = {"carrier": site.carrier, "place": "all" if site.place == ALL else site.place}
    line |= {"token": tokens[0] if len(tokens) == 1 else "varies", "layer": "all" if site.layer == ALL else site.layer}
    line |= {"kv": site.kv, "n_traces": len(cell)}
    line |= _bits(np.array([sum(row["clean"]) - row["log2p_own"][at] for row, at in cell]))
    if len({len(row["clean"]) for row, _ in cell}) == 1 and all(row["by_token"] for row, _ in cell):
        line["by_token"] = np.mean([np.subtract(row["clean"], row["by_token"][at]) for row, at in cell], 0).tolist()
    if all(row["other"] is not None for row, _ in cell):
        keeps = np.array([row["greedy_own"][at] for row, at in cell])
        line["keeps_original"] = float(keeps.mean())
        if all(row["greedy_other"] for row, _ in cell):
            follows = estimate((np.array([row["greedy_other"][at] for row, at in cell]) & ~keeps).astype(float))
            line |= {"follows_donor": follows.value, "follows_low": follows.low, "follows_high": follows.high}
    moved = np.array([_effect_bits(row, at) for row, at in cell])
    share = recovered_share(moved, np.array([whole[id(row)] for row, _ in cell]))
    if share is not None:
        line |= {"recovered": share.value, "recovered_low": share.low, "recovered_high": share.high}
    return line


def _effect_bits(row: dict[str, Any], at: int) -> float:
    """By how much log2 p(own) - log2 p(donor's answer) falls; without such an answer, log2 p(own)."""
    own = sum(row["clean"]) - row["log2p_own"][at]
    return own - (row["clean_other"] - row["log2p_other"][at]) if row["log2p_other"] else own


def recovered_share(moved: np.ndarray, whole: np.ndarray) -> Estimate | None:
    """The share that sites have in what patching everything does; None where that is next to nothing.

    Args:
        moved, whole: float[n], bits by trace.
    """
    effect = ratio_estimate(whole, np.ones(len(whole)))
    return ratio_estimate(moved, whole) if effect.value > MIN_EFFECT_BITS and not effect.low <= 0 else None


def _bits(values: np.ndarray) -> dict[str, Any]:
    """Mean, interval and p-value of bits by trace."""
    mean, p = ratio_estimate(values, np.ones(len(values))), None
    if len(values) > 1:
        p = float(stats.ttest_1samp(values, 0).pvalue) if np.ptp(values) > 0 else float(values[0] == 0)
    size = float(np.abs(values).mean())
    return {"bits": mean.value, "bits_low": mean.low, "bits_high": mean.high, "size": size, "p": p}


def is_control(line: Mapping[Any, Any]) -> bool:
    """Whether a row of the results must be zero."""
    before = line["carrier"] == "earlier" and line["intervention"] == "swap"
    return line["carrier"] in ("placebo", "prompt", "arm") or before


def failed_controls(results: pd.DataFrame) -> tuple[str, ...]:
    """The controls that did not hold, in words."""
    return tuple(said for _, said in _failures(results))


def _failures(results: pd.DataFrame) -> list[tuple[str, str]]:
    """(source, what is wrong): a control moved traces on average, or each of them, whichever way."""
    found = []
    for source, part in results.groupby("source", sort=False):
        whole = part[
            (part["carrier"] == WHOLE_CACHE.carrier) & (part["layer"] == "all") & (part["kv"] == WHOLE_CACHE.kv)
        ]
        allowed = max(ROUNDING_TOLERANCE_BITS, TOLERATED_SHARE * whole["size"].max())
        for row in part[part["control"]].to_dict("records"):
            steady = abs(row["bits"]) > ROUNDING_TOLERANCE_BITS and (row["bits_low"] > 0 or row["bits_high"] < 0)
            if steady or not row["size"] <= allowed:  # what is no number fails
                what = "is off the arm that does the same" if row["carrier"] == "arm" else "moved the continuation"
                where = "" if row["layer"] == "all" else f" in layer {row['layer']}"
                who = f"{source}: {row['intervention']} of {row['carrier']}{where} {what}"
                found.append((str(source), f"{who} by {row['bits']:+.4f} bits ({row['size']:.4f} a trace)"))
    return found
