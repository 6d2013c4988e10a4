"""The outcome of an ablation: effects, controls, KV curves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ghosttrace.bench import Bench
from ghosttrace.channel import ARMS, Memento, Part
from ghosttrace.checkpoint import Checkpoint
from ghosttrace.expiry import Policy, alive, expiry
from ghosttrace.stats import estimate, paired_effect

REFERENCE = Memento.name


@dataclass(frozen=True)
class Ablation:
    """The outcome.

    Attributes:
        samples: one row per sample.
        results: one row per benchmark and arm (see `summarise`).
        valid: the controls held (see `failed_controls`).
        failures: what did not hold, in words.
    """

    samples: pd.DataFrame
    results: pd.DataFrame
    failures: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """Every control held."""
        return not self.failures

    def per_problem(self) -> pd.DataFrame:
        """Correct answers of each problem, one column an arm."""
        return self.samples.pivot_table(
            index=["bench", "problem"], columns="arm", values="correct", aggfunc="sum", sort=False
        ).astype(int)


def summarise(samples: pd.DataFrame, bytes_per_token: int) -> pd.DataFrame:
    """Accuracy and paired effect of every arm on every benchmark.

    Args:
        samples: one row per sample.
        bytes_per_token: KV bytes that one token takes in the model.

    Returns:
        One row per bench and arm: n_problems, n_samples, accuracy and effect with intervals, problems
        better and worse than under `memento`, the detectable effect, mean peak and area of KV in
        tokens and bytes (areas in token-steps and byte-steps), truncated samples, and for `swap` the
        shares of swapped answers that follow the donor, that keep the original, and that do neither.
    """
    rows = []
    for bench, group in samples.groupby("bench", sort=False):
        scores = group.groupby(["arm", "problem"], sort=False)["correct"].mean().unstack("problem")
        reference = scores.loc[REFERENCE].to_numpy(float)
        for arm, part in group.groupby("arm", sort=False):
            mine = scores.loc[arm].to_numpy(float)
            accuracy, effect = estimate(mine), paired_effect(mine, reference)
            row = {"bench": bench, "arm": arm, "n_problems": len(mine), "n_samples": len(part)}
            row |= {"accuracy": accuracy.value, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
            row |= {"effect": effect.value, "effect_low": effect.low, "effect_high": effect.high}
            row |= {"better": effect.better, "worse": effect.worse, "detectable": effect.detectable}
            for name in ("peak_kv", "auc_kv"):
                tokens = float(part[f"{name}_tokens"].mean())
                row |= {f"{name}_tokens": tokens, f"{name}_bytes": tokens * bytes_per_token}
            rows.append(row | {"truncated": int((part["finish"] == "length").sum())} | _followed(part))
    return pd.DataFrame(rows)


def _followed(part: pd.DataFrame) -> dict[str, float | None]:
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


def failed_controls(results: pd.DataFrame, benches: Sequence[Bench], part: Part, policy: Policy) -> tuple[str, ...]:
    """The controls of an ablation, and those that did not hold.

    `placebo` is the negative control: recomputation alone must do nothing. A known ceiling is the
    other: no model beats it over a sealed cache unless the seal leaks. It holds where every finished
    block is gone when the answer is written.
    """
    failures = []
    all_gone = policy.keep_last_n_blocks == 0 and not policy.keep_last_block_for_answer
    ceilings = {bench.name: bench.ceiling if all_gone and part.whole else None for bench in benches}
    for row in results.to_dict("records"):
        if row["arm"] == "placebo" and not row["effect_low"] <= 0 <= row["effect_high"]:
            failures.append(f"{row['bench']}: placebo moved accuracy by {100 * row['effect']:+.1f} points")
        ceiling = ceilings[row["bench"]]
        if ARMS[row["arm"]].sealed and ceiling is not None and row["accuracy_low"] > ceiling:
            failures.append(
                f"{row['bench']}: {row['arm']} scores above {100 * ceiling:g} %, which no sealed cache allows"
            )
    return tuple(failures)


def curves(ablation: Ablation, checkpoint: Checkpoint, problem: str) -> dict[str, np.ndarray]:
    """KV tokens held at each step of one problem's first response, by arm, from the law alone.

    Args:
        ablation: with samples of that problem.
        checkpoint: whose markup and policy to read them by.
        problem: its id.

    Returns:
        For each arm int64[steps], prompt included.
    """
    rows = ablation.samples[(ablation.samples["problem"] == problem) & (ablation.samples["repetition"] == 0)]
    found = {}
    for row in rows.to_dict("records"):
        law = ARMS[row["arm"]]().law(checkpoint.policy)
        found[row["arm"]] = alive(expiry([*row["prompt_ids"], *row["response_ids"]], checkpoint.markup, law))
    return found
