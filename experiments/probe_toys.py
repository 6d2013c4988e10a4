"""Claim: mementos of both toys contain the digits that their text hides, and notes that the task never needs.

Runs `ghosttrace probe` on each bundled model and `ledger-h3`, on keys, values and hidden states, and shows the bits by
layer and hop in open and sealed caches. Writes `experiments/results/probe_toys.parquet` (columns of
`ghosttrace.probing.evidence.summarise`, and the model) and `figures/probe_toys.{png,svg}`.
`python experiments/probe_toys.py`: about ten minutes on two cores.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ghosttrace.probing.result import ProbeResult
from ghosttrace.probing.run import probe
from ghosttrace.report.probing.figures import draw_heat
from ghosttrace.runs.figures import write_figure
from ghosttrace.runs.folder import is_finished

ROOT = Path(__file__).parent.parent
MODELS, TARGETS, BENCH, SAMPLES = ("toy-open", "toy-mixed"), ("hidden-*", "note-*"), "ledger-h3", 6000


def measure(work: Path) -> pd.DataFrame:
    """Probe both models, resuming interrupted runs.

    Raises:
        SystemExit: If a control failed.
    """
    parts = []
    for model in MODELS:
        folder = work / model
        if not is_finished(folder):
            begun = (folder / "run.json").exists()
            out, resume = (None, folder) if begun else (folder, None)
            probe(model, BENCH, samples=SAMPLES, kv=("k", "v", "hidden"), out=out, resume=resume)
        result = ProbeResult.open(folder)
        if not result.valid:
            raise SystemExit(f"{model}: controls failed: {result.failures}")
        parts.append(result.results.assign(model=model))
    return pd.concat(parts, ignore_index=True)


def draw(results: pd.DataFrame) -> Figure:
    """Draw the bits of linear probes on values by layer and hop, open and sealed, one row of panels per model."""
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    grid = figure.subplots(2, 4, sharex=True, sharey=True)
    linear = results[(results["probe"] == "linear") & (results["kv"] == "v")]
    for line, model in zip(grid, MODELS, strict=True):
        panels = [(target, condition) for target in TARGETS for condition in ("open", "sealed")]
        for axis, (target, condition) in zip(line, panels, strict=True):
            rows = linear[(linear["model"] == model) & (linear["target"] == target)]
            image = draw_heat(axis, rows[rows["condition"].isin([condition, "causal"])], 3.33, "hop")
            axis.set_title(f"{model}, {target}, {condition}", fontsize=8)
        line[0].set_ylabel("layer")
    for axis in grid[1]:
        axis.set_xlabel("hop (-1: before)")
    figure.colorbar(image, ax=grid, label="bits per digit beyond the text, of 3.32")
    return figure


def main() -> None:
    """Measure and write results and figure."""
    results = measure(ROOT / "runs" / "probe_toys")
    results.to_parquet(ROOT / "experiments" / "results" / "probe_toys.parquet", index=False)
    figure = draw(results)
    write_figure(ROOT, "probe_toys", figure)


if __name__ == "__main__":
    main()
