"""What a result shows in a notebook: its findings in sentences, and its figures as images."""

from pathlib import Path

import pytest
from IPython.core.formatters import DisplayFormatter
from typer.testing import CliRunner

import ghosttrace as gt
from ghosttrace.cli.main import app

SMALL_ABLATION = {"bench": "ledger-h1", "arms": "restart", "limit": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> gt.AblationResult:
    return gt.ablate("toy-mixed", **SMALL_ABLATION, out=tmp_path_factory.mktemp("runs") / "run")


def test_a_notebook_shows_a_figure_as_an_image(run: gt.AblationResult) -> None:
    data, _ = DisplayFormatter().format(run.figure("accuracy"))
    assert data["image/png"].startswith(b"\x89PNG")


def test_findings_are_what_the_command_prints(run: gt.AblationResult, tmp_path: Path) -> None:
    arguments = ["ablate", "--bench", "ledger-h1", "--arms", "restart", "--limit", "3", "--out", str(tmp_path / "run")]
    printed = " ".join(CliRunner().invoke(app, arguments).output.split())
    assert len(run.findings) >= 2 and any("restart" in sentence for sentence in run.findings)
    for sentence in run.findings:
        assert " ".join(sentence.split()) in printed
    assert gt.open_run(run.folder).findings == run.findings


def test_every_result_has_findings() -> None:
    bits = gt.bits("toy-mixed", bench="ledger-h1", limit=2)
    patched = gt.patch("toy-mixed", bench="ledger-h1", kind="swap", block=-1, limit=2)
    for result, word in ((bits, "bits per token"), (patched, "ledger-h1")):
        assert any(word in sentence for sentence in result.findings)
        assert "controls" in result.findings[-1]
