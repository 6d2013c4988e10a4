"""Table of `experiments/rl_channel.py`: what reinforcement learning does to the ghost channel."""

from collections.abc import Callable
from typing import Any

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


RL_TABLES: dict[str, Callable[[], str]] = {"rl-channel": rl_channel}
