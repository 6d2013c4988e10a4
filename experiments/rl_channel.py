"""Question: does reinforcement learning reopen a ghost channel that training on sealed caches has closed?

The start is `toy-open` after a short sealed fine-tune (`experiments/adapted_drop.py`): over a sealed cache it solves
all problems whose mementos hide nothing (h = 0), and at h = 1 it is right little more often than the retained text
permits, over either cache. From there `ghosttrace rl` rewards right answers on `ledger-h1` in three ways, with two
seeds each:

- free: rollouts over the open cache;
- penalised: the same, less the ghost bits at the answer (`--rewards correct,channel:-0.01`);
- sealed: rollouts and training over a sealed cache, where no more than one answer in ten can be right.

Accuracy, drop and ghost bits are measured on other problems, at h = 0 (where the retained text suffices) and h = 1.

Writes `experiments/results/rl_channel.parquet`, from which `make figures` draws. `PYTHONPATH=. python
experiments/rl_channel.py` resumes an interrupted run.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from experiments.adapted_drop import train_sealed
from ghosttrace.report.looks import LOOKS
from ghosttrace.training.rl import RLRecipe, rl

ROOT = Path(__file__).parent.parent
SEALED_STEPS, STEPS, EVERY, SEEDS = 20, 100, 25, (0, 1)
RUNS = {
    "free": {},
    "penalised": {"rewards": "correct,channel:-0.01"},
    "sealed": {"sealed": True},
}
"""Options of the recipe by kind of run."""
RL_FLAGS = {
    "max_completion_length": 160,
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "learning_rate": 1e-4,
    "warmup_steps": 5,
    "max_steps": STEPS,
    "save_steps": 50,
    "logging_steps": 5,
    "disable_tqdm": True,
}


def train(model: str, kind: str, seed: int, work: Path) -> pd.DataFrame:
    """Return the measurements of one run, training it or going on with it if needed."""
    folder = work / f"{kind}-{seed}"
    given = (text for name, value in (RL_FLAGS | {"seed": seed}).items() for text in (f"--{name}", str(value)))
    if not (folder / "summary.json").exists():
        recipe = RLRecipe(
            model,
            "ledger-h1",
            limit=4096,
            channel_every=EVERY,
            channel_bench="ledger-h0,ledger-h1",
            channel_problems=100,
            trainer=tuple(given),
            **RUNS[kind],  # type: ignore[arg-type]
        )
        begun = (folder / "run.json").exists()
        rl(recipe, *((None, folder) if begun else (folder, None)))
    return pd.read_parquet(folder / "channel.parquet").assign(run=kind, seed=seed)


def draw(table: pd.DataFrame) -> Figure:
    """Draw accuracy with an open and a sealed cache and ghost bits by step, one line per run."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    columns = {
        "accuracy": "accuracy, open cache, %",
        "sealed": "accuracy, sealed cache, %",
        "answer_bits": "ghost bits at the answer",
    }
    rows = table[table["bench"] == "ledger-h1"]
    for axis, (column, label) in zip(figure.subplots(1, 3), columns.items(), strict=True):
        for (kind, seed), run in rows.groupby(["run", "seed"]):
            look = LOOKS[list(RUNS).index(str(kind))]
            values = (1 if column == "answer_bits" else 100) * run[column]
            axis.plot(
                run["step"],
                values,
                markersize=4,
                **look,
                label=kind if seed == SEEDS[0] else None,
            )
        if column != "answer_bits":
            axis.axhline(10, color="#888888", linewidth=0.8)
            axis.set_ylim(-2, 102)
        axis.set_xlabel("step of reinforcement learning")
        axis.set_title(label, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=9)
    return figure


def main() -> None:
    """Train and measure all runs, and write results and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "rl_channel")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    model, tables = train_sealed(SEALED_STEPS, work), []
    for seed in SEEDS:
        for kind in RUNS:
            tables.append(train(model, kind, seed, work))
            print(tables[-1][["run", "seed", "step", "bench", "accuracy", "sealed", "answer_bits"]], flush=True)
    table = pd.concat(tables, ignore_index=True)
    table.to_parquet(ROOT / "experiments" / "results" / "rl_channel.parquet", index=False)


if __name__ == "__main__":
    main()
