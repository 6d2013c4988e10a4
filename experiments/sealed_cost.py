"""Claim: where the text suffices, a model trained with sealed caches is as accurate as one trained without.

Compares `toy-sealed`, decoded with `restart`, with `toy-open`, decoded as it was trained, on the same problems of
`ledger`. Also measures the cost of sealed decoding on the same traces: recomputed memento tokens, time, and peak KV
cache. The cost of sealed training is in `benchmarks/results/training.json`.

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
from ghosttrace.paired import paired_effect
from ghosttrace.stats import estimate

ROOT = Path(__file__).parent.parent
LIMIT, TRACES = 400, 40


def measure() -> pd.DataFrame:
    """Return by level both accuracies and their paired difference; every row also has the costs."""
    runs = {
        name: gt.ablate(name, bench="ledger", arms=("restart",), limit=LIMIT) for name in ("toy-sealed", "toy-open")
    }
    sealed = runs["toy-sealed"].per_problem()["restart"]
    unsealed = runs["toy-open"].per_problem()["memento"].loc[sealed.index]
    checkpoint, rng = gt.load("toy-sealed"), np.random.default_rng(0)
    ids = checkpoint.tokenizer.get_vocab()
    ledgers = [Ledger.sample(rng, 0) for _ in range(TRACES)]
    traces = [[ids[t] for t in ("<|user|>", *ledger.prompt, "<|assistant|>", *ledger.response())] for ledger in ledgers]
    spent = cost(checkpoint, Restart(), traces)
    rows = []
    for bench, scores in sealed.groupby(level="bench"):
        arrays = {"sealed": scores.to_numpy(float), "open": unsealed.loc[scores.index].to_numpy(float)}
        effect = paired_effect(arrays["sealed"], arrays["open"])
        row = {"bench": bench, "n": len(scores), "effect": effect.value, "low": effect.low, "high": effect.high}
        rows.append(row | {name: estimate(values, 0.0, 1.0).value for name, values in arrays.items()})
    costs = {"tokens": spent.prefill_ratio, "latency": spent.latency_ratio, "kv": spent.kv_ratio}
    return pd.DataFrame(rows).assign(**costs)


def main() -> None:
    """Measure and write the results."""
    torch.set_num_threads(1)
    results = measure()
    results.to_parquet(ROOT / "experiments" / "results" / "sealed_cost.parquet", index=False)
    print(results.to_string())


if __name__ == "__main__":
    main()
