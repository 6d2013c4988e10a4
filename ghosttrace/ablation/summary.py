"""Statistics of an ablation: effects with intervals, pass@k and controls."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ghosttrace.ablation.arms import Arm, Part
from ghosttrace.ablation.erased import response_counts
from ghosttrace.ablation.samples import problem_clusters
from ghosttrace.ablation.votes import votes
from ghosttrace.bench import Bench
from ghosttrace.law.law import Law
from ghosttrace.paired import equivalence_interval, paired_effect, paired_p_value
from ghosttrace.runs.folder import REFERENCE_ARM
from ghosttrace.stats import ALPHA, estimate, holm, maj_at_k, pass_at_k


def summarise(samples: pd.DataFrame, bytes_per_token: int, margin: float | None = None) -> pd.DataFrame:
    """Return the accuracy and the paired effect of every arm on every benchmark.

    Args:
        samples: One row per sample (columns of `ghosttrace.ablation.samples.SAMPLE_SCHEMA`).
        bytes_per_token: KV bytes per token.
        margin: Margin of the test of equivalence, as a fraction; None for no test.

    Returns:
        One row per bench and arm with the columns

        - n_problems, n_clusters (units that are resampled), n_samples, truncated (samples cut off at the maximum
          length);
        - accuracy and effect (accuracy minus that of `memento`, paired by problem), each with its 95 % interval
          `_low`, `_high`;
        - the columns of `effect_columns`: joint intervals, tests and equivalence;
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
        cluster = problem_clusters(group, scores.columns)
        reference = scores.loc[REFERENCE_ARM].to_numpy(float)
        n_tested = scores.index.nunique() - 1
        for arm, part in group.groupby("arm", sort=False):
            arm_scores = scores.loc[arm].to_numpy(float)
            accuracy = estimate(arm_scores, cluster=cluster)
            row: dict[str, Any] = {"bench": bench, "arm": arm, "n_problems": len(arm_scores), "n_samples": len(part)}
            row |= {"n_clusters": len(np.unique(cluster))}
            row |= {"accuracy": accuracy.value, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
            row |= effect_columns(arm_scores, reference, cluster, 0 if arm == REFERENCE_ARM else n_tested, margin)
            for name in ("peak_kv", "auc_kv"):
                tokens = float(part[f"{name}_tokens"].mean())
                row |= {f"{name}_tokens": tokens, f"{name}_bytes": tokens * bytes_per_token}
            row |= {"significant": False, "truncated": int((part["finish"] == "length").sum())} | response_counts(part)
            rows.append(row | _swap_answer_shares(part))
        tested = [row for row in rows[first:] if row["p"] is not None]
        for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row |= {"p_holm": p, "significant": p <= ALPHA}
    return pd.DataFrame(rows)


def effect_columns(
    scores: np.ndarray, reference: np.ndarray, cluster: np.ndarray, n_tested: int, margin: float | None
) -> dict[str, Any]:
    """Return the columns of one arm's effect.

    Args:
        scores, reference: float[n], accuracy of each problem under the arm and under `memento`.
        cluster: [n], cluster of each problem.
        n_tested: Number of arms of the benchmark that are compared with `memento`; 0 for `memento` itself.
        margin: Margin of the test of equivalence, as a fraction; None for no test.

    Returns:
        - effect, effect_low, effect_high: the effect with its 95 % interval;
        - effect_low_joint, effect_high_joint: interval at the level 5 % / n_tested (Bonferroni), so that all arms of
          the benchmark are covered together with 95 %;
        - better, worse: problems solved more often or less often than under `memento`;
        - rests_on_few, detectable: see `ghosttrace.paired.Effect`;
        - p, p_holm: p-value of the effect; the same adjusted over the benchmark's arms (Holm) is added by `summarise`;
        - equivalence_low, equivalence_high, equivalent: the 90 % interval of two one-sided tests at 5 %, and whether
          it lies inside the margin; None without a margin and for `memento`.
    """
    effect = paired_effect(scores, reference, cluster=cluster)
    joint = paired_effect(scores, reference, cluster=cluster, alpha=ALPHA / max(n_tested, 1))
    columns: dict[str, Any] = {"effect": effect.value, "effect_low": effect.low, "effect_high": effect.high}
    columns |= {"effect_low_joint": joint.low, "effect_high_joint": joint.high}
    columns |= {"better": effect.better, "worse": effect.worse}
    columns |= {"rests_on_few": effect.rests_on_few, "detectable": effect.detectable}
    columns |= {"p": paired_p_value(scores, reference, cluster=cluster) if n_tested else None, "p_holm": None}
    columns |= dict.fromkeys(("equivalence_low", "equivalence_high", "equivalent"))
    if n_tested and margin is not None:
        tested = equivalence_interval(scores, reference, cluster=cluster)
        columns |= {"equivalence_low": tested.low, "equivalence_high": tested.high}
        columns |= {"equivalent": bool(-margin < tested.low and tested.high < margin)}
    return columns


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
        cluster = np.array([problem["cluster"].iloc[0] for problem in problems])
        n_correct = np.array([problem["correct"].sum() for problem in problems])
        total = np.array([len(problem) for problem in problems])
        max_k = int(total.min())
        for k in sorted({2**power for power in range(max_k.bit_length())} | {max_k}):
            passed = estimate(pass_at_k(n_correct, total, k), cluster=cluster)
            majority = estimate(np.array([_majority(problem, k) for problem in problems]), cluster=cluster)
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
    results: pd.DataFrame, arms: Mapping[str, Arm], benches: Sequence[Bench], part: Part, law: Law
) -> tuple[str, ...]:
    """Return one message for each failed control.

    A control arm such as `placebo` must not change the accuracy: none of their p-values may be significant after Holm's
    adjustment over all control arms and benchmarks of the run. A sealed arm must not exceed the known ceiling of a
    benchmark, because no model can do so unless the sealed cache leaks. The ceiling is checked only if the whole cache
    was sealed, and only under a law for which the benchmark states it.

    Args:
        results: Table returned by `summarise`.
        arms: The arms of the run, by name.
        benches: The benchmarks of the run.
        part: The part of the cache that the sealing arms recomputed.
        law: The law of the run.

    Returns:
        The messages; empty if all controls passed.
    """
    failures = []
    changed = changed_controls(results, [name for name, arm in arms.items() if arm.control])
    ceilings = {bench.name: bench.ceiling_under(law) if part.is_whole_cache else None for bench in benches}
    for row in results.to_dict("records"):
        arm = arms[row["arm"]]
        if (row["bench"], row["arm"]) in changed:
            failures.append(f"{row['bench']}: {arm.name} moved accuracy by {100 * row['effect']:+.1f} points")
        ceiling = ceilings[row["bench"]]
        if arm.sealed and ceiling is not None and row["accuracy_low"] > ceiling:
            failures.append(
                f"{row['bench']}: {row['arm']} scores above {100 * ceiling:g} %, which no sealed cache allows"
            )
    return tuple(failures)


def changed_controls(results: pd.DataFrame, controls: Sequence[str]) -> set[tuple[str, str]]:
    """Return the benchmarks and control arms whose effect is significant at 5 % after Holm's adjustment over all."""
    rows = results[results["arm"].isin(controls)].to_dict("records")
    adjusted = holm([row["p"] for row in rows])
    return {(row["bench"], row["arm"]) for row, p in zip(rows, adjusted, strict=True) if p <= ALPHA}


def headline_arm(arms: Iterable[Arm]) -> str | None:
    """Return the name of the arm with the highest priority, for the report's headline.

    The reference and control arms are excluded; returns None if there are no others.
    """
    candidates = [arm for arm in arms if arm.name != REFERENCE_ARM and not arm.control]
    return max(candidates, key=lambda arm: arm.priority).name if candidates else None
