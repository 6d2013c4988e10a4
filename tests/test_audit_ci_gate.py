"""The gate of examples/ci-gate: it passes the audit's exit code on, and its workflow uploads what the audit leaves."""

import subprocess
from pathlib import Path

import pytest
import yaml

GATE = Path(__file__).parent.parent / "examples" / "ci-gate"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0, "PASS: nothing found above"),
        (2, "STOP: the audit could not be run as asked"),
        (10, "STOP: a leak"),
        (11, "STOP: not enough data"),
        (12, "STOP: a control failed"),
        (137, "STOP: the audit ended with exit code 137"),
    ],
)
def test_the_gate_passes_the_exit_code_on(tmp_path: Path, code: int, said: str) -> None:
    stub = tmp_path / "ghosttrace"
    stub.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    stub.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    words = ["sh", GATE / "gate.sh", "a model", "out", "--max-leak-bits", "0.2"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    called, told = done.stdout.splitlines()
    assert called == "audit --model a model --out out --max-leak-bits 0.2"
    assert done.returncode == code and told.startswith(said)


def test_the_workflow_uploads_what_the_gate_leaves_whatever_it_says() -> None:
    workflow = yaml.safe_load((GATE / "audit.yml").read_text())
    steps = workflow["jobs"]["audit"]["steps"]
    assert workflow["permissions"]["security-events"] == "write"
    assert "examples/ci-gate/gate.sh" in next(step["run"] for step in steps if step.get("name") == "Audit")
    upload = next(step for step in steps if "upload-sarif" in step.get("uses", ""))
    assert upload["with"]["sarif_file"].endswith("/audit.sarif") and "always()" in upload["if"]
