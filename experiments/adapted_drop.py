"""Claim: the part of a drop under `restart` that a short sealed fine-tune recovers was not missing information.

`toy-open` was never trained with a sealed cache. Under `restart` it fails at every level of `ledger`, even at h = 0,
where the text suffices. It is fine-tuned by `ghosttrace sft --stage sealed` for increasing numbers of steps, on new
problems of all levels with loss on all labels. The recovered accuracy had been lost to an unfamiliar kind of cache.
A sealed cache allows at most `SEALED_CEILING`. That the rest came through the ghost channel takes a control: the tuned
model also loses it over an open cache, so only a matched fine-tune that is not sealed could attribute it.

Writes `experiments/results/adapted_drop.parquet` and the figure `figures/adapted_drop`.
`python -m experiments.adapted_drop`: about fifteen minutes on one core; resumes an interrupted run.
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
from ghosttrace.report.looks import LOOKS
from ghosttrace.runs.figures import write_figure
from ghosttrace.training.recipe import Recipe
from ghosttrace.training.sft import sft

ROOT = Path(__file__).parent.parent
STEPS = (0, 50, 100, 200, 400, 800)
LEARNING_RATE, LIMIT = 5e-4, 400
SEALED_CEILING = (1.0, 0.1, 0.01, 0.001)


def train_sealed(steps: int, work: Path) -> str:
    """Return name or path of `toy-open` after `steps` steps of sealed fine-tuning, training it if needed."""
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
    """Return accuracy by level, arm and number of steps."""
    tables = []
    for steps in STEPS:
        path = work / f"ablation-{steps}.parquet"
        if not path.exists():
            results = gt.ablate(train_sealed(steps, work), bench="ledger", arms=("restart",), limit=LIMIT).results
            results.assign(steps=steps).to_parquet(path, index=False)
        tables.append(pd.read_parquet(path))
        print(tables[-1][["steps", "bench", "arm", "accuracy"]].to_string(), flush=True)
    return pd.concat(tables, ignore_index=True)


def draw(results: pd.DataFrame) -> Figure:
    """Draw accuracy under `restart` by the number of sealed steps, one line per level, with its ceiling dashed."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axis = figure.subplots()
    sealed = results[results["arm"] == "restart"]
    for level, look in enumerate(LOOKS):
        rows = sealed[sealed["bench"] == f"ledger-h{level}"].sort_values("steps")
        low, high = rows["accuracy"] - rows["accuracy_low"], rows["accuracy_high"] - rows["accuracy"]
        axis.errorbar(
            range(len(rows)),
            100 * rows["accuracy"],
            [100 * low, 100 * high],
            **look,
            label=f"h = {level}",
        )
        axis.axhline(100 * SEALED_CEILING[level], color=look["color"], linestyle=":", linewidth=0.8)
    axis.set_xticks(range(len(STEPS)), [str(steps) for steps in STEPS])
    axis.set_xlabel("steps of sealed fine-tuning (32 problems each)")
    axis.set_ylabel("accuracy under restart, %")
    axis.set_title("Recovered accuracy was not missing information. Dotted: ceiling of a sealed cache.", fontsize=9)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Measure and write results and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "adapted_drop", help="folder for training data and runs"
    )
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    results = measure(work)
    results.to_parquet(ROOT / "experiments" / "results" / "adapted_drop.parquet", index=False)
    write_figure(ROOT, "adapted_drop", draw(results))


if __name__ == "__main__":
    main()
