"""The claim: of a drop under `restart`, what a short sealed fine-tune brings back was never missing information.

`toy-open` never met a sealed cache and falls to 0 % under `restart` at every level of `ledger`, at h = 0 too, where
the text suffices. It is fine-tuned by `ghosttrace sft --stage sealed` on new problems of all levels, nothing left
out of the loss, for more and more steps. What comes back was unfamiliarity; what stays gone, below the ceiling of
100, 10, 1 and 0.1 %, came through the ghost channel.

Writes `experiments/results/adapted_drop.parquet` and the figure `figures/adapted_drop`.
`python experiments/adapted_drop.py`: about fifteen minutes on one core; goes on where it stopped.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

import ghosttrace as gt
from experiments.train_toys import TOYS, SftRun, flags, make_tokenizer, write_rows
from ghosttrace.training.recipe import Recipe
from ghosttrace.training.sft import sft

ROOT = Path(__file__).parent.parent
STEPS = (0, 50, 100, 200, 400, 800)
LEARNING_RATE, LIMIT = 5e-4, 400
SEALED_CEILING = (1.0, 0.1, 0.01, 0.001)
COLOURS = ("#1b6e53", "#3b7dd8", "#d8873b", "#b3392f")


def train_sealed(steps: int, work: Path) -> str:
    """`toy-open` after so many sealed steps: a name to load."""
    if not steps:
        return "toy-open"
    out = work / f"steps-{steps}"
    if not (out / "model").exists():
        shutil.rmtree(out, ignore_errors=True)
        part = SftRun("sealed", steps, LEARNING_RATE, only_determined_labels=False)
        toy = replace(TOYS["toy-open"], parts=(part,), seed=7)
        rows = work / f"rows-{steps}.parquet"
        write_rows(rows, toy, 0, make_tokenizer())
        sft(Recipe("toy-open", (str(rows),), "sealed", kernel="matmul", trainer=flags(toy, part)), out)
    return str(out / "model")


def measure(work: Path) -> pd.DataFrame:
    """Accuracy by level, arm and number of steps."""
    tables = []
    for steps in STEPS:
        path = work / f"ablation-{steps}.parquet"
        if not path.exists():
            found = gt.ablate(train_sealed(steps, work), bench="ledger", arms=("restart",), limit=LIMIT).results
            found.assign(steps=steps).to_parquet(path, index=False)
        tables.append(pd.read_parquet(path))
        print(tables[-1][["steps", "bench", "arm", "accuracy"]].to_string(), flush=True)
    return pd.concat(tables, ignore_index=True)


def draw(results: pd.DataFrame) -> Figure:
    """Accuracy under `restart` by the number of sealed steps, a line a level, its ceiling dashed."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axis = figure.subplots()
    sealed = results[results["arm"] == "restart"]
    for level, colour in enumerate(COLOURS):
        rows = sealed[sealed["bench"] == f"ledger-h{level}"].sort_values("steps")
        low, high = rows["accuracy"] - rows["accuracy_low"], rows["accuracy_high"] - rows["accuracy"]
        places = range(len(rows))
        axis.errorbar(
            places, 100 * rows["accuracy"], [100 * low, 100 * high], color=colour, marker="o", label=f"h = {level}"
        )
        axis.axhline(100 * SEALED_CEILING[level], color=colour, linestyle="--", linewidth=0.8)
    axis.set_xticks(range(len(STEPS)), [str(steps) for steps in STEPS])
    axis.set_xlabel("steps of sealed fine-tuning (32 problems each)")
    axis.set_ylabel("right under restart, %")
    axis.set_title("What comes back was never information. Dashed: the best that a sealed cache allows.", fontsize=9)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Measure, record, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "adapted_drop", help="for rows and runs")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    results = measure(work)
    results.to_parquet(ROOT / "experiments" / "results" / "adapted_drop.parquet", index=False)
    for kind in ("png", "svg"):
        draw(results).savefig(ROOT / "figures" / f"adapted_drop.{kind}", dpi=150)


if __name__ == "__main__":
    main()
