"""From samples to findings: effects with intervals, pass@k, and whether the controls held."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ghosttrace.ablation.arms import Arm, Part
from ghosttrace.bench import Bench
from ghosttrace.law.expiry import Policy
from ghosttrace.runs.folder import REFERENCE_ARM
from ghosttrace.stats import estimate, holm, maj_at_k, paired_effect, paired_p_value, pass_at_k


def summarise(samples: pd.DataFrame, bytes_per_token: int) -> pd.DataFrame:
    """Accuracy and paired effect of every arm on every benchmark.

    Args:
        samples: one row per sample.
        bytes_per_token: KV bytes that one token takes in the model.

    Returns:
        One row per bench and arm: n_problems, n_samples, accuracy and effect with intervals, problems
        better and worse than under `memento`, the detectable effect, the effect's p-value and the same
        adjusted over the benchmark's arms (Holm), mean peak and area of KV in tokens and bytes (areas in
        token-steps and byte-steps), truncated samples, and for `swap` the shares of swapped answers
        that follow the donor, that keep the original, and that do neither.
    """
    rows: list[dict[str, Any]] = []
    for bench, group in samples.groupby("bench", sort=False):
        first = len(rows)
        scores = group.groupby(["arm", "problem"], sort=False)["correct"].mean().unstack("problem")
        reference = scores.loc[REFERENCE_ARM].to_numpy(float)
        for arm, part in group.groupby("arm", sort=False):
            mine = scores.loc[arm].to_numpy(float)
            accuracy, effect = estimate(mine), paired_effect(mine, reference)
            row: dict[str, Any] = {"bench": bench, "arm": arm, "n_problems": len(mine), "n_samples": len(part)}
            row |= {"accuracy": accuracy.value, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
            row |= {"effect": effect.value, "effect_low": effect.low, "effect_high": effect.high}
            row |= {"better": effect.better, "worse": effect.worse, "detectable": effect.detectable}
            row |= {"p": None if arm == REFERENCE_ARM else paired_p_value(mine, reference), "p_holm": None}
            for name in ("peak_kv", "auc_kv"):
                tokens = float(part[f"{name}_tokens"].mean())
                row |= {f"{name}_tokens": tokens, f"{name}_bytes": tokens * bytes_per_token}
            rows.append(row | {"truncated": int((part["finish"] == "length").sum())} | _swap_answer_shares(part))
        tested = [row for row in rows[first:] if row["p"] is not None]
        for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row["p_holm"] = p
    return pd.DataFrame(rows)


def at_k(samples: pd.DataFrame) -> pd.DataFrame:
    """pass@k and maj@k of every arm on every benchmark.

    Args:
        samples: one row per sample.

    Returns:
        One row per bench, arm and k (powers of two, and all the repetitions): pass_at_k, the chance that
        one of k samples is right, and maj_at_k, that the answer most of them give is, with intervals
        over problems.
    """
    rows = []
    for (bench, arm), part in samples.groupby(["bench", "arm"], sort=False):
        problems = [problem for _, problem in part.groupby("problem", sort=False)]
        right = np.array([problem["correct"].sum() for problem in problems])
        total = np.array([len(problem) for problem in problems])
        most = int(total.min())
        for k in sorted({2**power for power in range(most.bit_length())} | {most}):
            passed = estimate(pass_at_k(right, total, k))
            agreed = estimate(np.array([_majority(problem, k) for problem in problems]))
            row = {"bench": bench, "arm": arm, "k": k}
            row |= {"pass_at_k": passed.value, "pass_low": passed.low, "pass_high": passed.high}
            rows.append(row | {"maj_at_k": agreed.value, "maj_low": agreed.low, "maj_high": agreed.high})
    return pd.DataFrame(rows)


def _majority(problem: pd.DataFrame, k: int) -> float:
    votes = [None if pd.isna(vote) else str(vote) for vote in problem["extracted"]]
    return maj_at_k(votes, problem["correct"].to_numpy(bool), k)


def _swap_answer_shares(part: pd.DataFrame) -> dict[str, float | None]:
    """For `swap`: whom the answers follow, among samples in which a memento was swapped.

    Where the donor leads to the very answer of the original (nothing was hidden), an unchanged answer
    counts as keeping it.
    """
    swapped = part[part["donor_answer"].notna()]
    if swapped.empty:
        return {"follows_donor": None, "keeps_original": None, "neither": None}
    keeps = swapped["extracted"] == swapped["answer"]
    follows = (swapped["extracted"] == swapped["donor_answer"]) & ~keeps
    return {
        "follows_donor": float(follows.mean()),
        "keeps_original": float(keeps.mean()),
        "neither": float((~keeps & ~follows).mean()),
    }


def failed_controls(
    results: pd.DataFrame, arms: Mapping[str, Arm], benches: Sequence[Bench], part: Part, policy: Policy
) -> tuple[str, ...]:
    """The controls that did not hold, in words.

    A control arm such as `placebo` is the negative control: recomputation alone must do nothing. A known
    ceiling is the other: no model beats it over a sealed cache unless the seal leaks. It holds where every
    finished block is gone when the answer is written.

    Args:
        results: of `summarise`.
        arms: those that were run, by name.
        benches: those that were run.
        part: what the sealing arms sealed.
        policy: the checkpoint's.
    """
    failures = []
    all_gone = policy.keep_last_n_blocks == 0 and not policy.keep_last_block_for_answer
    ceilings = {bench.name: bench.ceiling if all_gone and part.is_whole_cache else None for bench in benches}
    for row in results.to_dict("records"):
        arm = arms[row["arm"]]
        if arm.control and not row["effect_low"] <= 0 <= row["effect_high"]:
            failures.append(f"{row['bench']}: {arm.name} moved accuracy by {100 * row['effect']:+.1f} points")
        ceiling = ceilings[row["bench"]]
        if arm.sealed and ceiling is not None and row["accuracy_low"] > ceiling:
            failures.append(
                f"{row['bench']}: {row['arm']} scores above {100 * ceiling:g} %, which no sealed cache allows"
            )
    return tuple(failures)


def headline_arm(arms: Iterable[Arm]) -> str | None:
    """The arm that the headline of a report is about; None if no arm acts on the channel."""
    acting = [arm for arm in arms if arm.name != REFERENCE_ARM and not arm.control]
    return max(acting, key=lambda arm: arm.priority).name if acting else None
