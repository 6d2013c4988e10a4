"""Measure ghost bits and patching of both bundled models on `ledger`.

    PYTHONPATH=. python experiments/toy_channel.py

Writes `experiments/results/toy_bits.parquet` (50 traces per level) and `toy_patching.parquet` (50 traces at h = 1 and
h = 3); about ten minutes on two cores.
"""

from pathlib import Path

import pandas as pd

import ghosttrace as gt

MODELS = ("toy-mixed", "toy-open")
RESULTS = Path(__file__).parent / "results"


def measure_bits(models: tuple[str, ...] = MODELS, limit: int = 50) -> pd.DataFrame:
    """Return the rows of `gt.bits` over all tokens and by kind of token, for each model."""
    parts = []
    for model in models:
        results = gt.bits(model, bench="ledger", limit=limit).results
        parts.append(results[results["by"].isin(["all", "kind"])].assign(model=model))
    return pd.concat(parts, ignore_index=True)


def measure_patching(models: tuple[str, ...] = MODELS, limit: int = 50) -> pd.DataFrame:
    """Return the rows of `gt.patch` for whole carriers and for whole layers of the memento, for each model."""
    parts = []
    for model in models:
        results = gt.patch(model, bench="ledger-h1,ledger-h3", limit=limit).results
        whole = results[results["offset"] == "all"]
        parts.append(whole.assign(model=model, layer=whole["layer"].astype(str)))
    return pd.concat(parts, ignore_index=True)


def main() -> None:
    """Run both measurements on both models."""
    measure_bits().to_parquet(RESULTS / "toy_bits.parquet", index=False)
    measure_patching().to_parquet(RESULTS / "toy_patching.parquet", index=False)


if __name__ == "__main__":
    main()
