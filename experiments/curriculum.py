"""Question: does training need a stage with full attention before memento attention?

The paper reports that training with memento attention from the start is much worse (arXiv 2604.09852, section 4). Here
the same random model is trained on equally many problems of `ledger` in two ways. `staged` uses full attention for the
first half and memento attention for the second; `at once` uses memento attention throughout. Both run with several
random seeds and are compared by their losses and their accuracy in the arm `memento`.

Writes `experiments/results/curriculum.parquet` (accuracies), `curriculum_losses.parquet` and the figure
`figures/curriculum`.
`python -m experiments.curriculum`: about 15 minutes per seed on one core; resumes an interrupted run.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

import ghosttrace as gt
from experiments.train_toys import FULL, TOYS, SftRun, Toy, train
from ghosttrace.report.looks import LOOKS
from ghosttrace.runs.figures import write_figure

ROOT = Path(__file__).parent.parent
SEEDS, STEPS_PER_HALF, LIMIT = (0, 1), 700, 200
LEARNING_RATE = FULL.learning_rate


def curricula(seed: int) -> dict[str, Toy]:
    """Return the two curricula, with equally many steps."""
    toy = replace(TOYS["toy-open"], seed=seed)
    staged = (replace(FULL, steps=STEPS_PER_HALF), SftRun("memento", STEPS_PER_HALF, LEARNING_RATE))
    at_once = (
        SftRun("memento", STEPS_PER_HALF, LEARNING_RATE, "constant_with_warmup"),
        SftRun("memento", STEPS_PER_HALF, LEARNING_RATE),
    )
    return {"staged": replace(toy, parts=staged), "at once": replace(toy, parts=at_once)}


def measure(work: Path, seeds: tuple[int, ...]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train both curricula and return accuracies by curriculum, seed and level, and losses by step."""
    tables, curves = [], []
    for seed in seeds:
        for name, toy in curricula(seed).items():
            path = work / f"{name.replace(' ', '-')}-{seed}.parquet"
            folder = path.with_suffix("")
            columns: dict[str, Any] = {"curriculum": name, "seed": seed}
            if not path.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                model, _ = train(toy, folder)
                results = gt.ablate(str(model), bench="ledger", arms=("full",), limit=LIMIT).results
                results.assign(**columns).to_parquet(path, index=False)
            tables.append(pd.read_parquet(path))
            for part in range(len(toy.parts)):
                log = pd.read_parquet(folder / f"part-{part}" / "samples.parquet")
                losses = log[["step", "loss_block", "loss_memento", "loss_answer"]]
                curves.append(losses.assign(**columns, part=part, step=losses["step"] + part * STEPS_PER_HALF))
            print(tables[-1][["curriculum", "seed", "bench", "arm", "accuracy"]].to_string(), flush=True)
    return pd.concat(tables, ignore_index=True), pd.concat(curves, ignore_index=True)


def draw(curves: pd.DataFrame) -> Figure:
    """Draw the loss on answers by step, one line per seed."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axis = figure.subplots()
    for name, look in zip(("staged", "at once"), LOOKS, strict=False):
        rows = curves[curves["curriculum"] == name]
        for number, (_, seed_rows) in enumerate(rows.groupby("seed")):
            label = {"staged": "full, then memento", "at once": "memento at once"}[name] if number == 0 else None
            loss = seed_rows["loss_answer"].clip(lower=1e-4)
            axis.plot(seed_rows["step"], loss, label=label, linewidth=1.4, **look | {"marker": None})
    axis.axvline(STEPS_PER_HALF, color="#888888", linewidth=0.8, linestyle=":")
    axis.set_yscale("log")
    axis.set_xlabel("steps of 32 problems (dotted: the stage changes)")
    axis.set_ylabel("loss on answers, nats per token")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Measure and write results and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "curriculum", help="folder for training data and runs"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    results, curves = measure(chosen.work, tuple(chosen.seeds))
    results.to_parquet(ROOT / "experiments" / "results" / "curriculum.parquet", index=False)
    curves.to_parquet(ROOT / "experiments" / "results" / "curriculum_losses.parquet", index=False)
    write_figure(ROOT, "curriculum", draw(curves))


if __name__ == "__main__":
    main()
