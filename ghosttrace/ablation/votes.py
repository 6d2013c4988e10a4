"""Votes of the samples in a majority vote: answers that are equal by the grader vote together."""

import pandas as pd

from ghosttrace.bench.grading import group_equal_answers

MIN_VOTERS = 3  # with fewer samples of a problem and arm, it does not matter which wrong answers are equal


def votes(samples: pd.DataFrame) -> pd.Series:
    """Return the answer that each sample votes for; None if it gave none.

    The wrong answers to a problem that are equal by the rule that graded them vote for the same answer, under every
    arm. Correct samples keep their answer, because a vote counts all of them as one answer.

    Args:
        samples: One row per sample (columns of `ghosttrace.ablation.samples.SAMPLE_SCHEMA`), with a unique index.
    """
    voted = samples["extracted"].astype(object).where(samples["extracted"].notna(), None)
    for _, problem in samples.groupby(["bench", "problem"], sort=False):
        wrong = problem[~problem["correct"].astype(bool) & problem["extracted"].notna()]
        voters = problem.groupby("arm").size().max()
        if voters < MIN_VOTERS or not problem["correct"].any():  # without a correct sample, no majority is right
            continue
        voted.loc[wrong.index] = group_equal_answers(wrong["extracted"].tolist(), wrong["rule"].tolist())
    return voted
