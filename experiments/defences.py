"""The claim: what each defence of `toy-open` costs in answers, for the notes that it hides.

The five digits of a note are written in a block, never used, and erased: the secret. The digits of the state
are erased too, and the answer hangs on them. So what an operator wants gone and what the model lives on
go through the same channel, and a defence is worth what it takes of the one and leaves of the other.

Each defence is one audit of 3,000 problems of `ledger-h3`, attackers trained against it, MLPs
included; accuracy is paired, on the same 100 problems. Writes `experiments/results/defences.parquet` and
the figure `figures/defences`.

`python experiments/defences.py`: about forty minutes on one core; goes on where it stopped.
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

ROOT = Path(__file__).parent.parent
SEALED = "sealed training"  # not a defence of this model: another one, trained over sealed caches and restarted
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
ACCEPTED_EXIT_CODES = (0, 10, 11)  # exit codes of an audit that came to a conclusion


def audit(defence: str, folder: Path) -> dict[str, Any]:
    """The summary of one audit, run unless it is there."""
    if not (folder / "summary.json").exists():
        begun = folder.exists() and any(folder.iterdir())
        told = ["toy-sealed", "--defence", "restart"] if defence == SEALED else ["toy-open", "--defence", defence]
        where = ["--resume", str(folder)] if begun else [*AUDIT.split(), "--out", str(folder), "--model", *told]
        done = subprocess.run([sys.executable, "-m", "ghosttrace", "audit", *where], check=False)
        if done.returncode not in ACCEPTED_EXIT_CODES:
            raise SystemExit(f"the audit of {defence} ended with {done.returncode}")
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def row_of(defence: str, summary: dict[str, Any], undefended: float) -> dict[str, Any]:
    """One point of the picture; what sealed training loses is counted from the other model."""
    row = pareto_row(summary) | {"defence": defence, "verdict": summary["verdict"]}
    if defence == SEALED:
        worth = summary["defence"]
        ends = {"lost_low": undefended - worth["accuracy_high"], "lost_high": undefended - worth["accuracy_low"]}
        row |= {"lost": undefended - worth["accuracy"], **ends}
    return row


def main() -> None:
    """Measure, record, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "defences", help="for the audits' folders")
    work, rows = parser.parse_args().work, []
    found = {defence: audit(defence, work / re.sub(r"\W+", "-", defence)) for defence in DEFENCES}
    for defence, summary in found.items():
        rows.append(row_of(defence, summary, found["none"]["defence"]["accuracy"]))
        print(rows[-1], flush=True)
    results = pd.DataFrame(rows)
    results.to_parquet(ROOT / "experiments" / "results" / "defences.parquet", index=False)
    for kind in ("png", "svg"):
        pareto_figure(rows).savefig(ROOT / "figures" / f"defences.{kind}", dpi=150)


if __name__ == "__main__":
    main()
