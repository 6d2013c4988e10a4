"""The findings of an ablation in two or three sentences."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ghosttrace.report.ablation.page import arm_description
from ghosttrace.report.findings import failed_controls_text
from ghosttrace.runs.folder import REFERENCE_ARM
from ghosttrace.stats import ALPHA


def ablation_findings(results: pd.DataFrame, summary: Mapping[str, Any], configuration: Mapping[str, Any]) -> list[str]:
    """Return what an ablation found, whether its controls passed, and what limits the conclusion.

    If a control failed, this comes first.

    Args:
        results: Rows of `ghosttrace.ablation.summary.summarise`.
        summary: Content of summary.json.
        configuration: Content of run.json.
    """
    failures = summary["failures"]
    found = [
        failed_controls_text(failures) if failures else None,
        _effect(results, summary["headline_arm"], configuration),
        _rests_on_few(results, summary["headline_arm"]),
        _others(results, summary["headline_arm"]),
        None if failures else _equivalence(results, configuration["settings"].get("margin")),
        _swapped(results, "law" in configuration),
        None if failures else _controls(results, configuration),
        _count(results, "without_blocks", "Responses that finished no block"),
        _count(results, "unextracted", "Responses from which no answer could be extracted"),
        _count(results, "truncated", "Responses that reached the token limit"),
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


def _rests_on_few(results: pd.DataFrame, arm: str | None) -> str | None:
    """Return on which benchmarks few problems may carry the headline arm's significant effect."""
    rows = results[(results["arm"] == arm) & (pd.to_numeric(results["p_holm"]) <= ALPHA)].to_dict("records")
    benches = [row["bench"] for row in rows if row["rests_on_few"]]
    if not benches:
        return None
    return (
        f"Few problems may carry the effect on {', '.join(benches)}: it is not significant without the five that add "
        "most to it. The interval allows for further such problems that this sample missed."
    )


def _equivalence(results: pd.DataFrame, margin: float | None) -> str | None:
    """Return which arms were shown to be equivalent to `memento`; None if the run had no margin."""
    if margin is None:
        return None
    several, found = results["bench"].nunique() > 1, dict[bool, list[str]]()
    for row in results[results["arm"] != REFERENCE_ARM].to_dict("records"):
        name = f"{row['arm']} on {row['bench']}" if several else row["arm"]
        found.setdefault(bool(row["equivalent"]), []).append(name)
    start = {True: "Equivalent to memento", False: "Not shown to be equivalent"}
    sentences = [
        f"{start[shown]} within ±{margin:g} points: {', '.join(found[shown])}." for shown in start if shown in found
    ]
    return " ".join([*sentences, "(Two one-sided tests at 5 %, of each arm by itself.)"]) if sentences else None


def _others(results: pd.DataFrame, headline: str | None) -> str | None:
    """Return which other arms have an effect."""
    significant = results[(results["arm"] != headline) & results["significant"]]
    arms = list(dict.fromkeys(significant["arm"]))
    return f"Other arms with a significant effect (p <= {ALPHA} after Holm): {', '.join(arms)}." if arms else None


def _swapped(results: pd.DataFrame, other_law: bool) -> str | None:
    """Return the share of answers that follow the counterfactual block, or tool result, under `swap`."""
    rows = results[results["follows_donor"].notna()].to_dict("records")
    if not rows:
        return None
    parts = [f"{100 * row['follows_donor']:.1f} % on {row['bench']}" for row in rows]
    whose, text = ("one memento's", "block")
    if other_law:
        whose, text = ("the", "tool result")
    return (
        f"With {whose} keys and values computed from a counterfactual {text} under the same text (swap), answers "
        f"that followed the counterfactual {text}: {', '.join(parts)}."
    )


def _controls(results: pd.DataFrame, configuration: Mapping[str, Any]) -> str:
    """Return whether the effects can be relied on, if no control failed."""
    arms = configuration["arms"]
    names = list(dict.fromkeys(results["arm"]))
    if names == [REFERENCE_ARM]:
        return f"Only {REFERENCE_ARM} was run: add arms to compare it with."
    controls = [name for name in names if arms[name]["control"]]
    sealed = any(arms[name]["sealed"] for name in names)
    caveat = " A drop under a sealed arm can also come from a cache unfamiliar to the model." if sealed else ""
    if not controls:
        return f"No control arm was part of this run: add placebo to --arms before relying on the effects.{caveat}"
    rows = results[results["arm"].isin(controls)].to_dict("records")
    widest = max(rows, key=lambda row: row["effect_high"] - row["effect_low"])
    return f"The controls passed: {widest['arm']} changed accuracy by {_points(widest)}, not significant.{caveat}"


def _count(results: pd.DataFrame, column: str, what: str) -> str | None:
    """Return how many responses of each arm a column counts; None if there are none.

    Args:
        results: Rows of `ghosttrace.ablation.summary.summarise`.
        column: Column with numbers of responses.
        what: Description of these responses, as the start of a sentence.
    """
    by_arm = results.groupby("arm", sort=False)[[column, "n_samples"]].sum()
    counts = {arm: (row[column], row["n_samples"]) for arm, row in by_arm.iterrows()}
    if len(counts) > 1 and len(set(counts.values())) == 1:
        counts = {"every arm": next(iter(counts.values()))}
    parts = [f"{count:,} of {total:,} under {arm}" for arm, (count, total) in counts.items() if count]
    return f"{what}: {', '.join(parts)}." if parts else None
