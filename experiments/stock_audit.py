"""Claim: an audit finds a leak in a stock model that drops tool results in place, and none in a recomputed cache.

SmolLM2-135M-Instruct (`make lm`) under `tools:0`: keys of eight hexadecimal digits, planted in the tool results of
`examples/agent_sessions.jsonl`, without a defence and with `--defence restart`. Each audit is the command line that
`COMMAND` gives, in a run folder of its own.

Writes `stock_audit.parquet` into `experiments/results`: one row per audit and attack, with the audit's verdict.
`python experiments/stock_audit.py` runs what is not finished: about twenty minutes each on one core.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

from ghosttrace.runs.folder import is_finished, read_json

ROOT = Path(__file__).parent.parent
COMMAND = (
    *("--model", "smollm2-135m", "--law", "tools:0", "--traces", str(ROOT / "examples" / "agent_sessions.jsonl")),
    *("--secret", "key:8", "--samples", "32", "--layers", "14", "--hops", "0", "--carriers", "delimiters"),
    *("--no-mlp", "--attacks", "attribute"),
)
DEFENCES = ("none", "restart")
SUMMARY = ("verdict", "exit_code", "sentence", "traces", "valid")


def audit(defence: str, folder: Path) -> pd.DataFrame:
    """Run the audit of one defence, unless it is finished; return its results with its verdict."""
    if not is_finished(folder):
        place = ["--resume", str(folder)] if folder.exists() else [*COMMAND, "--defence", defence, "--out", str(folder)]
        subprocess.run([sys.executable, "-m", "ghosttrace", "audit", *place])  # its exit code is the verdict
    summary = read_json(folder / "summary.json", *SUMMARY, "results", "secrets")
    unknown = sum(secret["unknown_bits"] for secret in summary["secrets"])
    results = pd.DataFrame(summary["results"])[["attack", "condition", "unit", "estimate", "low", "high", "state", "n"]]
    return results.assign(defence=defence, unknown_bits=unknown, **{name: summary[name] for name in SUMMARY})


def main() -> None:
    """Run both audits and write their results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "stock_audit")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    table = pd.concat([audit(defence, work / defence) for defence in DEFENCES], ignore_index=True)
    table.to_parquet(ROOT / "experiments" / "results" / "stock_audit.parquet", index=False)
    print(table.drop_duplicates("defence")[["defence", *SUMMARY]].to_string())


if __name__ == "__main__":
    main()
