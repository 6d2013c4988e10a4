"""The findings of an ablation in two or three sentences."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ghosttrace.report.ablation.page import arm_description
from ghosttrace.runs.folder import REFERENCE_ARM

ALPHA = 0.05


def ablation_findings(results: pd.DataFrame, summary: Mapping[str, Any], configuration: Mapping[str, Any]) -> list[str]:
    """Return what an ablation found, whether its controls passed, and what limits the conclusion.

    Args:
        results: Rows of `ghosttrace.ablation.summary.summarise`.
        summary: Content of summary.json.
        configuration: Content of run.json.
    """
    found = [
        _effect(results, summary["headline_arm"], configuration),
        _others(results, summary["headline_arm"]),
        _swapped(results),
        _controls(results, summary, configuration),
        _truncated(results),
    ]
    return [sentence for sentence in found if sentence]


def _effect(results: pd.DataFrame, arm: str | None, configuration: Mapping[str, Any]) -> str | None:
    """Return the effect of the headline arm on each benchmark."""
    if arm is None:
        return None
    parts = [f"{_points(row)} on {row['bench']}" for row in results[results["arm"] == arm].to_dict("records")]
    return f"{arm_description(arm, configuration)} changed accuracy, compared with memento, by {', '.join(parts)}."


def _points(row: Mapping[Any, Any]) -> str:
    """Return the effect of a row with its interval, in points."""
    low, high = 100 * row["effect_low"], 100 * row["effect_high"]
    interval = "(no interval)" if pd.isna(low) else f"[{low:+.1f}, {high:+.1f}]"
    return f"{100 * row['effect']:+.1f} points {interval}"


def _others(results: pd.DataFrame, headline: str | None) -> str | None:
    """Return which other arms have an effect."""
    significant = results[(results["arm"] != headline) & (pd.to_numeric(results["p_holm"]) <= ALPHA)]
    arms = list(dict.fromkeys(significant["arm"]))
    return f"Other arms with a significant effect (p <= {ALPHA} after Holm): {', '.join(arms)}." if arms else None


def _swapped(results: pd.DataFrame) -> str | None:
    """Return the share of answers that follow the counterfactual block under `swap`."""
    rows = results[results["follows_donor"].notna()].to_dict("records")
    if not rows:
        return None
    parts = [f"{100 * row['follows_donor']:.1f} % on {row['bench']}" for row in rows]
    return (
        "With one memento's keys and values computed from a counterfactual block under the same text (swap), answers "
        f"that followed the counterfactual block: {', '.join(parts)}."
    )


def _controls(results: pd.DataFrame, summary: Mapping[str, Any], configuration: Mapping[str, Any]) -> str:
    """Return whether the effects can be relied on."""
    if summary["failures"]:
        return f"Do not rely on these numbers, because a control failed: {'; '.join(summary['failures'])}."
    arms = configuration["arms"]
    names = list(dict.fromkeys(results["arm"]))
    if names == [REFERENCE_ARM]:
        return f"Only {REFERENCE_ARM} was run, so no effect was measured: add arms to compare it with."
    controls = [name for name in names if arms[name]["control"]]
    sealed = any(arms[name]["sealed"] for name in names)
    caveat = " A drop under a sealed arm can also come from a cache unfamiliar to the model." if sealed else ""
    if not controls:
        return f"No control arm was part of this run: add placebo to --arms before relying on the effects.{caveat}"
    rows = results[results["arm"].isin(controls)].to_dict("records")
    widest = max(rows, key=lambda row: row["effect_high"] - row["effect_low"])
    return f"The controls passed: {widest['arm']} changed accuracy by {_points(widest)}, which includes 0.{caveat}"


def _truncated(results: pd.DataFrame) -> str | None:
    """Return which arms had truncated responses."""
    by_arm = results.groupby("arm", sort=False)[["truncated", "n_samples"]].sum()
    parts = [
        f"{row['truncated']:,} of {row['n_samples']:,} under {arm}"
        for arm, row in by_arm.iterrows()
        if row["truncated"]
    ]
    return f"Responses that reached the token limit: {', '.join(parts)}." if parts else None
