"""Small real runs for the tests of the leaderboard, and copies of them with other records."""

import json
import shutil
from pathlib import Path
from typing import Any

import ghosttrace as gt
from helpers.audits import run as audit_run
from helpers.audits import summary as audit_summary
from helpers.commands import ghosttrace


def make_runs(folder: Path) -> dict[str, Path]:
    """Run `ablate` on two models and `bits` on one, and return their folders by name."""
    arms = ("--arms", "full,placebo,restart,swap", "--noise", "0.3")
    ablation = ("ablate", "--bench", "ledger-h1", "--limit", "6", *arms, "--out", str(folder / "mixed"))
    assert ghosttrace(*ablation).returncode == 0
    gt.ablate("toy-open", "ledger-h1", "restart,noise", limit=6, noise=0.3, out=folder / "open")
    gt.bits(gt.load("toy-mixed"), bench="ledger-h1", limit=4, out=folder / "bits")
    return {name: folder / name for name in ("mixed", "open", "bits")}


def record(folder: Path, name: str) -> dict[str, Any]:
    """Return the content of run.json or summary.json of a run."""
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return content


def copy_run(run: Path, folder: Path, summary: dict[str, Any] | None = None, **configuration: Any) -> Path:
    """Copy a run, with entries of its summary.json and of its run.json replaced."""
    shutil.copytree(run, folder)
    (folder / "run.json").write_text(json.dumps(record(run, "run") | configuration))
    (folder / "summary.json").write_text(json.dumps(record(run, "summary") | (summary or {})))
    return folder


def write_audit_like(run: Path, folder: Path, verdict: str, defence: str = "none", **task: Any) -> Path:
    """Write an audit with a given verdict, of the model and the law of another run."""
    folder.mkdir()
    same = {name: record(run, "run")[name] for name in ("model", "sha256", "policy")}
    configuration = audit_run() | same | {"targets": {"note-0": ["0", "1"]}}
    configuration["task"] = configuration["task"] | {"name": "ledger-h1"} | task
    summary = audit_summary(verdict, same["model"])
    summary["defence"] |= {"name": defence}
    (folder / "run.json").write_text(json.dumps(configuration))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "samples.parquet").touch()
    return folder
