"""The claim: full attention first, memento attention then, learns what memento attention at once does not, or later.

The paper reports that going straight to memento attention does much worse (arXiv 2604.09852, section 4). Here the
same random model sees as many problems of `ledger` either way: `staged`, half of them with full attention and half
by the law; `at once`, all by the law. Each way is run with several seeds and judged by its answers under `memento`.

Writes `experiments/results/curriculum.parquet` and the figure `figures/curriculum`.
`python experiments/curriculum.py`: about 15 minutes a seed on one core; goes on where it stopped.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import ghosttrace as gt
from experiments.train_toys import FULL, TOYS, Part, Toy, train

ROOT = Path(__file__).parent.parent
SEEDS, HALF, LIMIT = (0, 1), 700, 200
RATE = FULL.learning_rate


def ways(seed: int) -> dict[str, Toy]:
    """The two curricula, equally long."""
    toy = replace(TOYS["toy-open"], seed=seed)
    staged = (replace(FULL, steps=HALF), Part("memento", HALF, RATE))
    at_once = (Part("memento", HALF, RATE, "constant_with_warmup"), Part("memento", HALF, RATE))
    return {"staged": replace(toy, parts=staged), "at once": replace(toy, parts=at_once)}


def measure(work: Path, seeds: tuple[int, ...]) -> pd.DataFrame:
    """Accuracy by curriculum, seed and level."""
    tables = []
    for seed in seeds:
        for name, toy in ways(seed).items():
            path = work / f"{name.replace(' ', '-')}-{seed}.parquet"
            if not path.exists():
                folder = path.with_suffix("")
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                model, _ = train(toy, folder)
                found = gt.ablate(str(model), bench="ledger", arms=("full",), limit=LIMIT).results
                found.assign(curriculum=name, seed=seed).to_parquet(path, index=False)
            tables.append(pd.read_parquet(path))
            print(tables[-1][["curriculum", "seed", "bench", "arm", "accuracy"]].to_string(), flush=True)
    return pd.concat(tables, ignore_index=True)


def draw(results: pd.DataFrame) -> Figure:
    """Accuracy under `memento` by level, a bar a curriculum and a dot a seed."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    rows = results[results["arm"] == "memento"]
    for number, (name, colour) in enumerate((("staged", "#1b6e53"), ("at once", "#b3392f"))):
        mine = rows[rows["curriculum"] == name]
        places = np.arange(4) + 0.4 * number - 0.2
        by_level = [mine[mine["bench"] == f"ledger-h{level}"]["accuracy"] for level in range(4)]
        axis.bar(places, [100 * one.mean() for one in by_level], 0.36, color=colour, alpha=0.6, label=name)
        for place, one in zip(places, by_level, strict=True):
            axis.plot([place] * len(one), 100 * one, "o", color=colour, markersize=4)
    axis.set_xticks(range(4), [f"h = {level}" for level in range(4)])
    axis.set_ylabel("right under memento, %")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Measure, record, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "curriculum", help="for rows and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    results = measure(chosen.work, tuple(chosen.seeds))
    results.to_parquet(ROOT / "experiments" / "results" / "curriculum.parquet", index=False)
    for kind in ("png", "svg"):
        draw(results).savefig(ROOT / "figures" / f"curriculum.{kind}", dpi=150)


if __name__ == "__main__":
    main()
