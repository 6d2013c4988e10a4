"""Statistics of an ablation: effects with intervals, pass@k and controls."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ghosttrace.ablation.arms import Arm, Part
from ghosttrace.ablation.erased import response_counts
from ghosttrace.ablation.votes import votes
from ghosttrace.bench import Bench
from ghosttrace.law.expiry import Policy
from ghosttrace.runs.folder import REFERENCE_ARM
from ghosttrace.stats import ALPHA, estimate, holm, maj_at_k, paired_effect, paired_p_value, pass_at_k


def summarise(samples: pd.DataFrame, bytes_per_token: int) -> pd.DataFrame:
    """Return the accuracy and the paired effect of every arm on every benchmark.

    Args:
        samples: One row per sample (columns of `ghosttrace.ablation.samples.SAMPLE_SCHEMA`).
        bytes_per_token: KV bytes per token.

    Returns:
        One row per bench and arm with the columns

        - n_problems, n_samples, truncated (samples cut off at the maximum length);
        - accuracy and effect (accuracy minus that of `memento`, paired by problem), each with its 95 % interval
          `_low`, `_high`;
        - better, worse: problems solved more often or less often than under `memento`;
        - detectable: the smallest effect that a run of this size detects;
        - p, p_holm: p-value of the effect, and the same adjusted over the benchmark's arms (Holm);
        - significant: whether p_holm is at most `ALPHA`; False for `memento`;
        - blocks, without_blocks, unextracted: mean number of finished blocks per response, number of responses without
          one, and number of responses from which no answer could be extracted;
        - peak_kv_tokens, peak_kv_bytes, auc_kv_tokens, auc_kv_bytes: mean peak KV usage and mean area under the
          curve (token-steps, byte-steps);
        - follows_donor, keeps_original, neither: shares of the swapped samples' answers; None without a swap.
    """
    rows: list[dict[str, Any]] = []
    for bench, group in samples.groupby("bench", sort=False):
        first = len(rows)
        scores = group.groupby(["arm", "problem"], sort=False)["correct"].mean().unstack("problem")
        reference = scores.loc[REFERENCE_ARM].to_numpy(float)
        for arm, part in group.groupby("arm", sort=False):
            arm_scores = scores.loc[arm].to_numpy(float)
            accuracy, effect = estimate(arm_scores), paired_effect(arm_scores, reference)
            row: dict[str, Any] = {"bench": bench, "arm": arm, "n_problems": len(arm_scores), "n_samples": len(part)}
            row |= {"accuracy": accuracy.value, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
            row |= {"effect": effect.value, "effect_low": effect.low, "effect_high": effect.high}
            row |= {"better": effect.better, "worse": effect.worse, "detectable": effect.detectable}
            row |= {"p": None if arm == REFERENCE_ARM else paired_p_value(arm_scores, reference), "p_holm": None}
            for name in ("peak_kv", "auc_kv"):
                tokens = float(part[f"{name}_tokens"].mean())
                row |= {f"{name}_tokens": tokens, f"{name}_bytes": tokens * bytes_per_token}
            row |= {"significant": False, "truncated": int((part["finish"] == "length").sum())} | response_counts(part)
            rows.append(row | _swap_answer_shares(part))
        tested = [row for row in rows[first:] if row["p"] is not None]
        for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row |= {"p_holm": p, "significant": p <= ALPHA}
    return pd.DataFrame(rows)


def at_k(samples: pd.DataFrame) -> pd.DataFrame:
    """Return pass@k and maj@k of every arm on every benchmark.

    Args:
        samples: One row per sample (columns of `ghosttrace.ablation.samples.SAMPLE_SCHEMA`).

    Returns:
        One row per bench, arm and k (powers of two, and the number of repetitions): pass_at_k, the probability that
        at least one of k samples is correct, and maj_at_k, the probability that the majority answer of k samples is
        correct, with 95 % intervals over problems.
    """
    rows = []
    samples = samples.reset_index(drop=True)
    samples = samples.assign(vote=votes(samples))
    for (bench, arm), part in samples.groupby(["bench", "arm"], sort=False):
        problems = [problem for _, problem in part.groupby("problem", sort=False)]
        n_correct = np.array([problem["correct"].sum() for problem in problems])
        total = np.array([len(problem) for problem in problems])
        max_k = int(total.min())
        for k in sorted({2**power for power in range(max_k.bit_length())} | {max_k}):
            passed = estimate(pass_at_k(n_correct, total, k))
            majority = estimate(np.array([_majority(problem, k) for problem in problems]))
            row = {"bench": bench, "arm": arm, "k": k}
            row |= {"pass_at_k": passed.value, "pass_low": passed.low, "pass_high": passed.high}
            rows.append(row | {"maj_at_k": majority.value, "maj_low": majority.low, "maj_high": majority.high})
    return pd.DataFrame(rows)


def _majority(problem: pd.DataFrame, k: int) -> float:
    ballots = [None if pd.isna(vote) else str(vote) for vote in problem["vote"]]
    return maj_at_k(ballots, problem["correct"].to_numpy(bool), k)


def _swap_answer_shares(part: pd.DataFrame) -> dict[str, float | None]:
    """Return the shares of answers that follow the donor or the original, among samples with a swapped memento.

    If donor and original have the same answer because nothing was hidden, that answer counts as the original's.
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
    """Return one message for each failed control.

    A control arm such as `placebo` must not change the accuracy. A sealed arm must not exceed the known ceiling of a
    benchmark, because no model can do so unless the sealed cache leaks. The ceiling is checked only if the whole
    cache was sealed and the policy has erased every finished block by the time of the answer.

    Args:
        results: Table returned by `summarise`.
        arms: The arms of the run, by name.
        benches: The benchmarks of the run.
        part: The part of the cache that the sealing arms recomputed.
        policy: The checkpoint's policy.

    Returns:
        The messages; empty if all controls passed.
    """
    failures = []
    all_erased = policy.keep_last_n_blocks == 0 and not policy.keep_last_block_for_answer
    ceilings = {bench.name: bench.ceiling if all_erased and part.is_whole_cache else None for bench in benches}
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
    """Return the name of the arm with the highest priority, for the report's headline.

    The reference and control arms are excluded; returns None if there are no others.
    """
    candidates = [arm for arm in arms if arm.name != REFERENCE_ARM and not arm.control]
    return max(candidates, key=lambda arm: arm.priority).name if candidates else None
