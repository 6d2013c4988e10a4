"""The claim: mementos of both toys hold the digits that they hide, and notes that the task never needs.

`ghosttrace probe` on each bundled model, ledger-h3, with hidden states beside keys and values; where the
digits are by layer and hop, open against sealed. Writes `experiments/results/probe_toys.parquet` (columns
of `ghosttrace.probing.evidence.summarise`, and the model) and `figures/probe_toys.{png,svg}`. About ten
minutes on two cores: `python experiments/probe_toys.py`.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ghosttrace.probing.result import ProbeResult
from ghosttrace.probing.run import probe
from ghosttrace.report.probing.figures import draw_heat
from ghosttrace.runs.folder import is_finished

ROOT = Path(__file__).parent.parent
MODELS, TARGETS, BENCH, SAMPLES = ("toy-open", "toy-mixed"), ("hidden-*", "note-*"), "ledger-h3", 6000


def measure(work: Path) -> pd.DataFrame:
    """Probe both models, or go on where that stopped."""
    parts = []
    for model in MODELS:
        folder = work / model
        if not is_finished(folder):
            begun = (folder / "run.json").exists()
            out, resume = (None, folder) if begun else (folder, None)
            probe(model, BENCH, samples=SAMPLES, kv=("k", "v", "hidden"), out=out, resume=resume)
        found = ProbeResult.open(folder)
        if not found.valid:
            raise SystemExit(f"{model}: {found.failures}")
        parts.append(found.results.assign(model=model))
    return pd.concat(parts, ignore_index=True)


def draw(results: pd.DataFrame) -> Figure:
    """Bits by layer and hop in values, linear probes; a row a model, open and sealed side by side."""
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    grid = figure.subplots(2, 4, sharex=True, sharey=True)
    linear = results[(results["probe"] == "linear") & (results["kv"] == "v")]
    for line, model in zip(grid, MODELS, strict=True):
        panels = [(target, condition) for target in TARGETS for condition in ("open", "sealed")]
        for axis, (target, condition) in zip(line, panels, strict=True):
            here = linear[(linear["model"] == model) & (linear["target"] == target)]
            image = draw_heat(axis, here[here["condition"].isin([condition, "causal"])], 3.33, "hop")
            axis.set_title(f"{model}, {target}, {condition}", fontsize=8)
        line[0].set_ylabel("layer")
    for axis in grid[1]:
        axis.set_xlabel("hop (-1: before)")
    figure.colorbar(image, ax=grid, label="bits a digit beyond the text, of 3.32")
    return figure


def main() -> None:
    """Measure, record, draw."""
    results = measure(ROOT / "runs" / "probe_toys")
    results.to_parquet(ROOT / "experiments" / "results" / "probe_toys.parquet", index=False)
    figure = draw(results)
    for kind in ("png", "svg"):
        figure.savefig(ROOT / "figures" / f"probe_toys.{kind}", dpi=150)


if __name__ == "__main__":
    main()
