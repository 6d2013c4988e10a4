"""Tables of `experiments/rl_channel.py` and `rl_story.py`: what reinforcement learning does to the ghost channel."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from experiments.markdown import interval, markdown_table
from experiments.result_tables import ENDS, read


def ends(row: Any, name: str, scale: float = 100, digits: int = 1) -> str:
    """Return a measurement with its interval."""
    return interval((scale * row[f"{name}{end}"] for end in ENDS), digits)


def rl_channel() -> str:
    """Accuracy over an open and a sealed cache and ghost bits, before the first step and after the last, by run."""
    results, rows = read("rl_channel"), []
    last = results["step"].max()
    start = results[(results["step"] == 0) & (results["seed"] == 0) & (results["run"] == "free")]
    groups = [("before", "", start)]
    for (run, seed), part in results[results["step"] == last].groupby(["run", "seed"]):
        groups.append((str(run), str(seed), part))
    for run, seed, part in groups:
        by_bench = part.set_index("bench")
        easy, hard = by_bench.loc["ledger-h0"], by_bench.loc["ledger-h1"]
        cells = [ends(easy, "accuracy"), ends(hard, "accuracy"), ends(hard, "sealed")]
        rows.append([run, seed, *cells, ends(hard, "answer_bits", 1, 2)])
    header = ["run", "seed", "h = 0, open, %", "h = 1, open, %", "h = 1, sealed, %", "ghost bits, h = 1"]
    return markdown_table(header, rows)


def rl_story() -> str:
    """Right answers of the rollouts in quarters of the run, and their trend, with intervals over steps."""
    log = read("rl_story")
    right, steps = 100 * log["rewards/correct/mean"].to_numpy(), log["step"].to_numpy()
    rows = []
    for part in np.array_split(np.arange(len(log)), 4):
        mean, half = right[part].mean(), stats.sem(right[part]) * stats.t.ppf(0.975, len(part) - 1)
        rows.append([f"{steps[part[0]]} to {steps[part[-1]]}", interval((mean, mean - half, mean + half), 1)])
    trend = stats.linregress(steps, right)
    rise, half = (value * len(steps) for value in (trend.slope, trend.stderr * stats.t.ppf(0.975, len(steps) - 2)))
    rows.append(["rise from first to last, by a straight line", interval((rise, rise - half, rise + half), 1)])
    return markdown_table(["steps", "right answers, %"], rows)


def rl_story_channel() -> str:
    """Accuracy over an open and a sealed cache and ghost bits of the language model, before and after."""
    results, rows = read("rl_story_channel"), []
    for (bench, step), part in results.groupby(["bench", "step"]):
        row = part.iloc[0]
        cells = [ends(row, "accuracy"), ends(row, "sealed"), ends(row, "answer_bits", 1, 2)]
        rows.append([f"`{bench}`", str(step), *cells])
    return markdown_table(["benchmark", "step", "open, %", "sealed, %", "ghost bits at the answer"], rows)


RL_TABLES: dict[str, Callable[[], str]] = {
    "rl-channel": rl_channel,
    "rl-story": rl_story,
    "rl-story-channel": rl_story_channel,
}
