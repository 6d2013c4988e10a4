"""The command `ghosttrace ablate`: help text and invalid input."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ghosttrace.cli import main as cli

BAD = {
    "no model 'nowhere'": ["--model", "nowhere"],
    "no bench 'aime99'": ["--bench", "aime99"],
    "no arm 'restrat'": ["--arms", "restrat"],
    "layer 9 is out of range": ["--arms", "restart", "--layers", "9"],
    "head 4 is out of range": ["--arms", "restart", "--heads", "4"],
    "a comma-separated list of integers": ["--arms", "restart", "--layers", "one"],
    "--kv must be k, v or k,v": ["--arms", "restart", "--kv", "q"],
    "choose what a sealing arm seals": ["--arms", "swap", "--layers", "1"],
    "temperature >= 0": ["--temperature", "nan"],
    "cannot be used here": ["--device", "cuda:99"],
    "at least 1": ["--limit", "0"],
    "--map-delimiters must be NAME=TOKEN": ["--map-delimiters", "block=x"],
    "swap needs keep_last_n_blocks 0": ["--arms", "swap", "--keep-last-n-blocks", "1", "--limit", "2"],
    "keep_last_n_blocks -1 erases none": ["--arms", "restart", "--keep-last-n-blocks", "-1", "--limit", "2"],
    "seal-delimiters needs retained delimiters": ["--arms", "seal-delimiters", "--limit", "2"],
    "--seed must not be negative": ["--seed", "-1"],
    "no arm ''": ["--arms", ""],
    "also needs --arms restart-renumbered,rerotated,swap": ["--decompose", "--arms", "restart", "--limit", "2"],
    "omit a needed value: give --bench ledger or story": ["--decompose", "--bench", "agent-erased", "--limit", "2"],
    "leave out --layers, --heads and --kv": ["--decompose", "--layers", "1", "--limit", "2"],
    "remove --law": ["--decompose", "--law", "window:64,16", "--limit", "2"],
    "cannot be created": ["--out", "/proc/nowhere/run", "--limit", "1"],
}


@pytest.mark.parametrize("message", BAD)
def test_invalid_input_gives_one_sentence_and_exit_code_2(
    message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("sys.argv", ["ghosttrace", "ablate", *BAD[message]])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    stderr = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert message in stderr
    assert stderr.startswith("ghosttrace: ")
    assert "\n" not in stderr
    assert not list(tmp_path.glob("runs/*"))


def test_help_text() -> None:
    runner = CliRunner()
    assert "ablate" in runner.invoke(cli.app, ["--help"]).output
    assert "--bench" in runner.invoke(cli.app, ["ablate", "--help"], env={"COLUMNS": "200"}).output
