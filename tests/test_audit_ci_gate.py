"""The gate in examples/ci-gate: it returns the exit code of the audit, and its workflow uploads the reports."""

import subprocess
from pathlib import Path

import pytest
import yaml

GATE = Path(__file__).parent.parent / "examples" / "ci-gate"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (0, "PASS: nothing found above"),
        (2, "STOP: the audit could not run"),
        (10, "STOP: a leak"),
        (11, "STOP: not enough data"),
        (12, "STOP: a control failed"),
        (137, "STOP: the audit ended with exit code 137"),
    ],
)
def test_gate_returns_the_exit_code_of_the_audit(tmp_path: Path, code: int, message: str) -> None:
    stub = tmp_path / "ghosttrace"
    stub.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    stub.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    words = ["sh", GATE / "gate.sh", "a model", "out", "--max-leak-bits", "0.2"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    called, summary_line = done.stdout.splitlines()
    assert called == "audit --model a model --out out --max-leak-bits 0.2"
    assert done.returncode == code and summary_line.startswith(message)


def test_workflow_uploads_reports_for_every_exit_code() -> None:
    workflow = yaml.safe_load((GATE / "audit.yml").read_text())
    steps = workflow["jobs"]["audit"]["steps"]
    assert workflow["permissions"]["security-events"] == "write"
    assert "examples/ci-gate/gate.sh" in next(step["run"] for step in steps if step.get("name") == "Audit")
    upload = next(step for step in steps if "upload-sarif" in step.get("uses", ""))
    assert upload["with"]["sarif_file"].endswith("/audit.sarif") and "always()" in upload["if"]
