"""Measure ghost bits and patching of both bundled models on `ledger`.

    PYTHONPATH=. python experiments/toy_channel.py

Writes to `experiments/results`: `toy_bits.parquet` (50 traces per level); `toy_patching.parquet`, the swaps of whole
carriers and of whole layers of the memento for every block (50 traces at h = 1 and h = 3); `toy_patching_sets.parquet`,
the sets of sites that carry the text after each block. About 10 minutes on two cores.
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


def measure_patching(models: tuple[str, ...] = MODELS, limit: int = 50) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the swaps of `gt.patch` for whole carriers and layers, and the sets of sites, by model and block."""
    parts, sets = [], []
    for model in models:
        run = gt.patch(model, bench="ledger-h1,ledger-h3", kind="swap", limit=limit)
        if not run.valid:
            raise RuntimeError(f"a control failed: {run.failures}")
        whole = run.results[run.results["offset"] == "all"].drop(columns="by_token")
        parts.append(whole.assign(model=model, layer=whole["layer"].astype(str)))
        sets.append(pd.DataFrame(run.site_sets).assign(model=model))
    return pd.concat(parts, ignore_index=True), pd.concat(sets, ignore_index=True)


def main() -> None:
    """Run both measurements on both models."""
    measure_bits().to_parquet(RESULTS / "toy_bits.parquet", index=False)
    patched, site_sets = measure_patching()
    patched.to_parquet(RESULTS / "toy_patching.parquet", index=False)
    site_sets.to_parquet(RESULTS / "toy_patching_sets.parquet", index=False)


if __name__ == "__main__":
    main()
