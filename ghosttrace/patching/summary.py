"""Summary of patched traces: the effect of patching each site, and failed controls."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ghosttrace.patching.sites import ALL, PatchSite
from ghosttrace.stats import Estimate, estimate, holm, ratio_estimate

WHOLE_CACHE = PatchSite("everything")
ROUNDING_TOLERANCE_BITS = 1e-3
"""Change in bits per trace that is attributed to the numerics of recomputation."""
TOLERATED_SHARE = 0.05
"""Change in a control that is tolerated in low-precision dtypes, as a share of the size of patching everything."""
MIN_EFFECT_BITS = 0.1
"""Minimum effect of patching everything, in bits per trace, of which a recovered share is computed."""
RESULT_COLUMNS = (
    *("source", "block", "intervention", "carrier", "offset", "token", "layer", "kv", "n_traces"),
    *("bits", "bits_low", "bits_high", "size", "by_token"),
    *("follows_donor", "follows_low", "follows_high", "keeps_original"),
    *("recovered", "recovered_low", "recovered_high", "overshoot", "p", "p_holm", "control"),
)


def summarise(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return the effect of patching each site, by source, block and intervention.

    Args:
        rows: records of layout `PATCH_TABLE`.

    Returns:
        One row per source, block, intervention, carrier, offset, layer and kv. `block` is the index of the patched
        block, or of the erasure under another law than Memento's, from the last (-1) if negative. `offset` and `layer`
        are `all` for all of them. The other columns are:
        - token: text of the token, or `varies` if it differs between traces.
        - n_traces: number of traces with this site.
        - bits, bits_low, bits_high: mean decrease of log2 p of a trace's own continuation, with a 95 % interval.
        - size: mean absolute value of this decrease.
        - by_token: mean decrease for each token of the continuation, if it has the same length in all traces.
        - follows_donor, follows_low, follows_high: share of greedy continuations that become the donor's. The
          continuation of the last block is the answer; that of an earlier block ends with the next memento.
        - keeps_original: share of greedy continuations that remain the trace's own. A continuation shared with the
          donor counts here.
        - recovered, recovered_low, recovered_high, overshoot: share of the effect of patching everything on log2 p(own
          continuation) - log2 p(donor continuation), and the part beyond that effect (see `share_of`). Missing if
          patching everything has no effect. Shares of several sites need not add up to that of all of them together.
        - p, p_holm: p-value of a t test over traces that bits is 0, and the value adjusted over sites.
        - control: whether the row is a control, which must be 0.
        - valid: whether the controls of the source and block held.

        The rows of carrier `arm` hold the difference between patching everything and the arm that alters the whole
        cache in the same way.
    """
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["source"], row["block"], row["intervention"]), []).append(row)
    result_rows = [line for group, group_rows in groups.items() for line in _result_rows(*group, group_rows)]
    results = pd.DataFrame(result_rows, columns=list(RESULT_COLUMNS))
    failed = {(source, block) for source, block, _ in _failures(results)}
    results["valid"] = [pair not in failed for pair in zip(results["source"], results["block"], strict=True)]
    return results


def _result_rows(source: str, block: int, name: str, group: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the result rows of the records of one source, block and intervention."""
    entries: dict[PatchSite, list[tuple[dict[str, Any], int]]] = {}  # by site: records, and its index in their lists
    for row in group:
        for index, site in enumerate(map(PatchSite, row["carrier"], row["offset"], row["layer"], row["kv"])):
            entries.setdefault(site, []).append((row, index))
    whole_effect = {id(row): _effect_bits(row, index) for row, index in entries[WHOLE_CACHE]}
    shared: dict[str, Any] = {"source": source, "block": block, "intervention": name}
    lines = [shared | _result_row(site, site_entries, whole_effect) for site, site_entries in entries.items()]
    gap = np.array([row["log2p_own"][index] - row["arm"] for row, index in entries[WHOLE_CACHE]])
    arm = {"carrier": "arm", "offset": "all", "token": "all", "layer": "all"}
    lines.append(shared | arm | {"kv": "kv", "n_traces": len(group)} | _bits(gap))
    for line in lines:
        line["control"] = is_control(line)
    tested = [line for line in lines if not line["control"] and line["p"] is not None]
    for line, p in zip(tested, holm([line["p"] for line in tested]), strict=True):
        line["p_holm"] = p
    return lines


def _result_row(
    site: PatchSite, entries: Sequence[tuple[dict[str, Any], int]], whole_effect: Mapping[int, float]
) -> dict[str, Any]:
    """Return the result row of one site.

    Args:
        site: the site.
        entries: for each trace, its record and the index of the site in the record's lists.
        whole_effect: effect of patching everything, in bits, by `id` of the record.
    """
    tokens = list(dict.fromkeys(row["token"][index] for row, index in entries))
    line: dict[str, Any] = {"carrier": site.carrier, "offset": "all" if site.offset == ALL else site.offset}
    line |= {"token": tokens[0] if len(tokens) == 1 else "varies", "layer": "all" if site.layer == ALL else site.layer}
    line |= {"kv": site.kv, "n_traces": len(entries)}
    line |= _bits(np.array([sum(row["clean"]) - row["log2p_own"][index] for row, index in entries]))
    if len({len(row["clean"]) for row, _ in entries}) == 1 and all(row["by_token"] for row, _ in entries):
        decreases = [np.subtract(row["clean"], row["by_token"][index]) for row, index in entries]
        line["by_token"] = np.mean(decreases, 0).tolist()
    if all(row["other"] is not None for row, _ in entries):
        keeps = np.array([row["greedy_own"][index] for row, index in entries])
        line["keeps_original"] = float(keeps.mean())
        if all(row["greedy_other"] for row, _ in entries):
            predicts_donor = np.array([row["greedy_other"][index] for row, index in entries])
            follows = estimate((predicts_donor & ~keeps).astype(float))
            line |= {"follows_donor": follows.value, "follows_low": follows.low, "follows_high": follows.high}
    effect = np.array([_effect_bits(row, index) for row, index in entries])
    whole = np.array([whole_effect[id(row)] for row, _ in entries])
    if has_effect(whole):
        share = share_of(effect, whole)
        line |= {"recovered": share.recovered.value, "recovered_low": share.recovered.low}
        line |= {"recovered_high": share.recovered.high, "overshoot": share.overshoot}
    return line


def _effect_bits(row: dict[str, Any], index: int) -> float:
    """Return the decrease of log2 p(own continuation) - log2 p(donor continuation), or of the first term alone."""
    own = sum(row["clean"]) - row["log2p_own"][index]
    return own - (row["clean_other"] - row["log2p_other"][index]) if row["log2p_other"] else own


class Share(NamedTuple):
    """Effect of patching some sites as a share of the effect of patching everything.

    Attributes:
        recovered: the share up to the whole effect, at most 1, with a 95 % interval.
        overshoot: the share beyond the whole effect, at least 0. The sum of both is the plain ratio of the two means.
    """

    recovered: Estimate
    overshoot: float


def share_of(effect: np.ndarray, whole_effect: np.ndarray) -> Share:
    """Return the share of the effect of patching everything that some sites recover.

    The effect of the sites is bounded trace by trace by the effect of patching everything, so that what goes beyond it
    in one trace does not make up for what is missing in another.

    Args:
        effect: float[n], effect of patching the sites, in bits per trace.
        whole_effect: float[n], effect of patching everything, in bits per trace, with a mean above 0.
    """
    recovered = ratio_estimate(np.minimum(effect, whole_effect), whole_effect)
    overshoot = float(np.maximum(effect - whole_effect, 0).sum() / whole_effect.sum())
    return Share(Estimate(recovered.value, recovered.low, float(np.minimum(1.0, recovered.high))), overshoot)


def has_effect(whole_effect: np.ndarray) -> bool:
    """Return whether patching everything has an effect, in bits per trace, of which a share can be taken.

    Its mean must be above `MIN_EFFECT_BITS`, and its 95 % interval above 0.
    """
    whole = ratio_estimate(whole_effect, np.ones(len(whole_effect)))
    return bool(whole.value > MIN_EFFECT_BITS and not whole.low <= 0)


def _bits(values: np.ndarray) -> dict[str, Any]:
    """Return the columns of the result table that summarise bits per trace: mean, interval, size and p-value."""
    mean, p = ratio_estimate(values, np.ones(len(values))), None
    if len(values) > 1:
        p = float(stats.ttest_1samp(values, 0).pvalue) if np.ptp(values) > 0 else float(values[0] == 0)
    size = float(np.abs(values).mean())
    return {"bits": mean.value, "bits_low": mean.low, "bits_high": mean.high, "size": size, "p": p}


def is_control(line: Mapping[Any, Any]) -> bool:
    """Return whether a row of the results is a control, whose bits must be 0."""
    precedes_swap = line["carrier"] == "earlier" and line["intervention"] == "swap"
    return line["carrier"] in ("placebo", "prompt", "arm") or precedes_swap


def failed_controls(results: pd.DataFrame, unit: str = "block") -> tuple[str, ...]:
    """Return one sentence for each control that failed.

    Args:
        results: the table returned by `summarise`.
        unit: what its column `block` counts: `block` or `erasure`.
    """
    return tuple(message for _, _, message in _failures(results, unit))


def _failures(results: pd.DataFrame, unit: str = "block") -> list[tuple[str, int, str]]:
    """Return (source, block, message) for each control that changed the mean, or the mean absolute value."""
    failures = []
    for source, block in dict.fromkeys(zip(results["source"], results["block"], strict=True)):
        part = results[(results["source"] == source) & (results["block"] == block)]
        whole = part[
            (part["carrier"] == WHOLE_CACHE.carrier) & (part["layer"] == "all") & (part["kv"] == WHOLE_CACHE.kv)
        ]
        allowed = max(ROUNDING_TOLERANCE_BITS, TOLERATED_SHARE * whole["size"].max())
        for row in part[part["control"]].to_dict("records"):
            mean_differs = abs(row["bits"]) > ROUNDING_TOLERANCE_BITS and (row["bits_low"] > 0 or row["bits_high"] < 0)
            if mean_differs or not row["size"] <= allowed:  # `not <=` so that NaN fails
                if row["carrier"] == "arm":
                    failure = f"{row['intervention']} of everything differs from the arm that alters the whole cache"
                else:
                    layer = "" if row["layer"] == "all" else f" in layer {row['layer']}"
                    failure = f"{row['intervention']} of {row['carrier']}{layer} changed the continuation"
                sizes = f"by {row['bits']:+.4f} bits on average ({row['size']:.4f} bits per trace in absolute value)"
                failures.append((source, block, f"{source}, {unit} {block}: {failure} {sizes}"))
    return failures
