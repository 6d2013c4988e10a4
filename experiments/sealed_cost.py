"""The claim: where the text suffices, a model trained sealed answers as well as one that was not, and what it costs.

`toy-sealed`, decoded with `restart`, beside `toy-open`, decoded as it was trained, on the same problems of `ledger`;
and what decoding sealed costs: the tokens of mementos that are read again, time, and keys held meanwhile, on the same
traces. What training sealed costs is in `benchmarks/results/training.json`.

Writes `experiments/results/sealed_cost.parquet`. `python experiments/sealed_cost.py`: two minutes on one core.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

import ghosttrace as gt
from ghosttrace.ablation.arms import Restart
from ghosttrace.auditing.cost import cost
from ghosttrace.bench.ledger import Ledger
from ghosttrace.stats import estimate, paired_effect

ROOT = Path(__file__).parent.parent
LIMIT, TRACES = 400, 40


def measure() -> pd.DataFrame:
    """By level: both accuracies with intervals, and their paired difference; the costs stand in every row."""
    runs = {
        name: gt.ablate(name, bench="ledger", arms=("restart",), limit=LIMIT) for name in ("toy-sealed", "toy-open")
    }
    sealed = runs["toy-sealed"].per_problem()["restart"]
    usual = runs["toy-open"].per_problem()["memento"].loc[sealed.index]
    checkpoint, rng = gt.load("toy-sealed"), np.random.default_rng(0)
    ids = checkpoint.tokenizer.get_vocab()
    ledgers = [Ledger.sample(rng, 0) for _ in range(TRACES)]
    traces = [[ids[t] for t in ("<|user|>", *one.prompt, "<|assistant|>", *one.response())] for one in ledgers]
    spent = cost(checkpoint, Restart(), traces)
    rows = []
    for bench, mine in sealed.groupby(level="bench"):
        other = usual.loc[mine.index]
        effect = paired_effect(mine.to_numpy(float), other.to_numpy(float))
        found = {"sealed": estimate(mine.to_numpy(float), 0.0, 1.0), "open": estimate(other.to_numpy(float), 0.0, 1.0)}
        row = {"bench": bench, "n": len(mine), "effect": effect.value, "low": effect.low, "high": effect.high}
        rows.append(row | {name: one.value for name, one in found.items()})
    costs = {"tokens": spent.prefill_ratio, "latency": spent.latency_ratio, "kv": spent.kv_ratio}
    return pd.DataFrame(rows).assign(**costs)


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(1)
    results = measure()
    results.to_parquet(ROOT / "experiments" / "results" / "sealed_cost.parquet", index=False)
    print(results.to_string())


if __name__ == "__main__":
    main()
