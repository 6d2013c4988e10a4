"""Synthetic samples of an ablation in two conditions, with known accuracies under every arm."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

ARMS = ("memento", "restart", "restart-bare", "restart-renumbered", "rerotated")
NEEDED, SUFFICIENT = "needed", "complete"


def configuration(
    margin: float | None = 10.0, *, benches: tuple[str, ...] = (SUFFICIENT, NEEDED), ceiling: float = 0.1
) -> dict[str, Any]:
    """Return what a decomposition reads of run.json."""
    conditions = {name: {"family": "f", "omits_needed": name == NEEDED} for name in benches}
    part = {"layers": None, "heads": None, "kv": ["k", "v"], "carrier": None, "last": None}
    return {
        "benches": {name: {"condition": value, "ceiling": ceiling} for name, value in conditions.items()},
        "arms": {arm: {"sealed": arm.startswith("restart")} for arm in (*ARMS, "swap")},
        "policy": {"mask_delimiters": False},
        "settings": {"margin": margin, "part": part},
    }


def draw_samples(
    rng: np.random.Generator, accuracies: Mapping[str, Mapping[str, float]], n: int = 120, cluster_size: int = 1
) -> pd.DataFrame:
    """Draw one sample per problem and arm; arms share the draw of a problem, as they do in a run.

    Args:
        rng: Random generator.
        accuracies: Accuracy by condition and arm. The entry `swap` is the share of answers that follow the donor.
        n: Problems per condition.
        cluster_size: Problems per cluster; those of one cluster share their fate.
    """
    frames = []
    for bench, by_arm in accuracies.items():
        draws = np.repeat(rng.random(n // cluster_size), cluster_size)
        problems = [f"{bench}-{i}" for i in range(n)]
        clusters = [f"{bench} {i // cluster_size}" for i in range(n)]
        for arm, share in by_arm.items():
            frame = pd.DataFrame({"bench": bench, "arm": arm, "problem": problems, "cluster": clusters})
            answers = np.where(draws < (by_arm["memento"] if arm == "swap" else share), "1", "3")
            if arm == "swap":
                answers = np.where(draws < share, "2", answers)
            frame = frame.assign(repetition=0, correct=answers == "1", extracted=answers, answer="1")
            frames.append(frame.assign(donor_answer=donor_answer(bench) if arm == "swap" else None))
    return pd.concat(frames, ignore_index=True)


def donor_answer(bench: str) -> str:
    """Return the answer of every donor: the problem's own where nothing needed is omitted."""
    return "2" if bench == NEEDED else "1"
