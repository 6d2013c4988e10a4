"""Claim: how much of a drop under `restart` is information depends on the model, and can be told by decomposing it.

Runs the default arms of `ghosttrace ablate --decompose` with a margin of equivalence of `MARGIN` points: the bundled
toys on all levels of `ledger`, and `smollm2-open` on `story`, once that adapter is bundled. `toy-open` never met a
sealed cache in training, `toy-mixed` did, `toy-sealed` met nothing else.

Writes `experiments/results/decomposition.parquet` (columns of `ghosttrace.ablation.decomposition.Component`, with the
model, the hash of its weights, the margin and the versions).
`PYTHONPATH=. python experiments/decomposition.py`: about ten minutes for the toys on one core; resumes an interrupted
run.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

import ghosttrace as gt
from ghosttrace.ablation.result import AblationResult
from ghosttrace.runs.folder import is_finished

ROOT = Path(__file__).parent.parent
MARGIN = 3.0  # points; set before the runs


@dataclass(frozen=True)
class Run:
    """One run of the experiment.

    Attributes:
        model: Bundled name.
        benches: Names of benchmarks, comma-separated.
        limit: Problems per benchmark.
    """

    model: str
    benches: str
    limit: int


STORY = ",".join(f"story-{name}" for name in ("complete-derived", "needed-derived", "complete-observed"))
RUNS = (
    Run("toy-open", "ledger", 400),
    Run("toy-mixed", "ledger", 400),
    Run("toy-sealed", "ledger", 400),
    Run("smollm2-open", f"{STORY},story-unneeded-observed,story-needed-observed", 120),
)


def is_bundled(model: str) -> bool:
    """Return whether a checkpoint, or an adapter, of this name comes with the package."""
    return (Path(gt.__file__).parent / "checkpoints" / model).is_dir()


def measure(run: Run, work: Path) -> pd.DataFrame:
    """Return the decomposition of one run, which is started, continued or read.

    Raises:
        SystemExit: A control failed.
    """
    folder = work / run.model
    if is_finished(folder):
        result = AblationResult.open(folder)
    else:
        where = {"resume": folder} if folder.exists() else {"out": folder}
        result = gt.ablate(run.model, run.benches, limit=run.limit, margin=MARGIN, decompose=True, **where)  # type: ignore[arg-type]
    if not result.valid:
        raise SystemExit(f"{run.model}: controls failed: {result.failures}")
    configuration = result.configuration
    return result.decompose().assign(
        model=run.model,
        model_sha256=configuration["sha256"]["model"],
        margin=MARGIN,
        versions=json.dumps(configuration["versions"]),
    )


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "decomposition", help="folder for the runs")
    work = parser.parse_args().work
    torch.set_num_threads(1)
    parts = []
    for run in RUNS:
        if not is_bundled(run.model):
            print(f"{run.model} is not bundled yet: its run on story is left out", flush=True)
            continue
        parts.append(measure(run, work))
        print(parts[-1][["model", "bench", "component", "estimate", "low", "high", "verdict"]].to_string(), flush=True)
    results = pd.concat(parts, ignore_index=True)
    results.to_parquet(ROOT / "experiments" / "results" / "decomposition.parquet", index=False)


if __name__ == "__main__":
    main()
