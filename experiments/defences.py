"""Measure the leak and the lost accuracy of each defence of `toy-open`.

The secret is the five note digits of a block, which are erased and never used. The state digits are erased as well,
but the answer depends on them. Secret and useful information therefore share one channel, and a good defence removes
the secret and keeps the accuracy.

Each defence is one audit of 3,000 problems of `ledger-h3`. Attackers, MLPs included, are trained against the defence;
accuracy is paired, on the same 100 problems. Writes `experiments/results/defences.parquet` and the figure
`figures/defences`.

`python experiments/defences.py`: about forty minutes on one core; resumes an interrupted run.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from ghosttrace.report.audit.figures import pareto_figure, pareto_row
from ghosttrace.runs.figures import write_figure

ROOT = Path(__file__).parent.parent
SEALED = "sealed training"  # another model, trained with sealed caches and decoded with restart
DEFENCES = (
    "none",
    SEALED,
    "restart",
    "restart-renumbered",
    "partial:1",
    "partial:3",
    "scrub:3",
    "scrub:2,3",
    "leace",
    "leace:0.1",
    "random-direction",
    "noise:0.1",
    "noise:0.3",
    "noise:0.5",
    "noise:1",
)
AUDIT = "--bench ledger-h3 --targets note-* --samples 3000 --attacks attribute,behavioural"
ACCEPTED_EXIT_CODES = (0, 10, 11)  # of an audit whose controls held


def audit(defence: str, folder: Path) -> dict[str, Any]:
    """Return the summary of one audit, running or resuming it if needed.

    Raises:
        SystemExit: If the audit fails.
    """
    if not (folder / "summary.json").exists():
        begun = folder.exists() and any(folder.iterdir())
        subject = ["toy-sealed", "--defence", "restart"] if defence == SEALED else ["toy-open", "--defence", defence]
        options = ["--resume", str(folder)] if begun else [*AUDIT.split(), "--out", str(folder), "--model", *subject]
        process = subprocess.run([sys.executable, "-m", "ghosttrace", "audit", *options], check=False)
        if process.returncode not in ACCEPTED_EXIT_CODES:
            raise SystemExit(f"the audit of {defence} ended with exit code {process.returncode}: see its output above")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def row_of(defence: str, summary: dict[str, Any], undefended: float) -> dict[str, Any]:
    """Return one point of the figure; the loss of sealed training is relative to `toy-open` without defence."""
    row = pareto_row(summary) | {"defence": defence, "verdict": summary["verdict"]}
    if defence == SEALED:
        sealed = summary["defence"]
        ends = {"lost_low": undefended - sealed["accuracy_high"], "lost_high": undefended - sealed["accuracy_low"]}
        row |= {"lost": undefended - sealed["accuracy"], **ends}
    return row


def main() -> None:
    """Run all audits and write results and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "defences", help="folder for the run folders of the audits"
    )
    work, rows = parser.parse_args().work, []
    summaries = {defence: audit(defence, work / re.sub(r"\W+", "-", defence)) for defence in DEFENCES}
    for defence, summary in summaries.items():
        rows.append(row_of(defence, summary, summaries["none"]["defence"]["accuracy"]))
        print(rows[-1], flush=True)
    results = pd.DataFrame(rows)
    results.to_parquet(ROOT / "experiments" / "results" / "defences.parquet", index=False)
    write_figure(ROOT, "defences", pareto_figure(rows))


if __name__ == "__main__":
    main()
