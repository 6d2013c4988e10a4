"""Damaged run folders and impossible paths get one sentence, before any work is done; figures repeat byte by byte."""

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.audits import run as audit_run
from helpers.audits import summary as audit_summary
from helpers.audits import write_audit
from helpers.commands import ghosttrace
from helpers.reports import write_run
from matplotlib.figure import Figure

import ghosttrace as gt
from ghosttrace.errors import UserError
from ghosttrace.runs.figures import save_figure, write_figure
from ghosttrace.runs.folder import lock_folder, new_run_folder

BITS = ("bits", "--bench", "ledger-h1", "--limit", "1", "--out")
LONG, NOT_UTF8 = "x" * 300, os.fsdecode(b"run\xff")


@pytest.fixture(params=["ablate", "audit"])
def finished(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "ablate":
        return write_run(tmp_path / "run")
    (tmp_path / "run").mkdir()
    folder = write_audit(tmp_path / "run", audit_summary(), audit_run())
    (folder / "samples.parquet").touch()
    return folder


@pytest.mark.parametrize("name", ["run.json", "summary.json"])
def test_report_of_a_file_without_a_key_is_one_sentence(finished: Path, name: str) -> None:
    path = finished / name
    content: dict[str, Any] = json.loads(path.read_text())
    refused = 0
    for key in content:
        for damaged in ({other: value for other, value in content.items() if other != key}, {**content, key: None}):
            path.write_text(json.dumps(damaged))
            done = ghosttrace("report", str(finished))
            assert done.returncode in (0, 2) and done.stderr.count("\n") == (done.returncode == 2)
            refused += done.returncode == 2
    assert refused > 3
    path.write_text(json.dumps(content))
    assert ghosttrace("report", str(finished)).returncode == 0


def test_results_that_are_no_rows_are_refused(tmp_path: Path) -> None:
    for results in (None, 3, ["row"], [{}]):
        with pytest.raises(UserError, match="is not what this version writes"):
            gt.open_run(write_run(tmp_path / "run", results=results))


@pytest.mark.parametrize("name", ["samples.jsonl", "samples.parquet", ".lock", "summary.json"])
def test_folder_in_the_place_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"{re.escape(name)} is not a file: remove it"), lock_folder(tmp_path):
        pass


def test_dangling_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "nowhere" / "lock")
    with pytest.raises(UserError, match=r"\.lock is not a file: remove it"), new_run_folder(tmp_path):
        pass


@pytest.mark.parametrize(
    "arguments",
    [
        (*BITS, LONG),
        (*BITS, NOT_UTF8),
        ("bits", "--resume", LONG),
        ("bits", "--traces", LONG),
        ("report", LONG),
        ("report", NOT_UTF8),
        ("info", "toy-open", "--trace", LONG),
        ("init-tokens", "toy-open", LONG),
        ("init-tokens", "toy-open", NOT_UTF8),
    ],
    ids=lambda arguments: f"{' '.join(arguments)[:12]} {'long' if LONG in arguments else 'bytes'}",
)
def test_impossible_paths_are_refused(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = ghosttrace(*arguments)
    assert done.returncode == 2 and done.stderr.endswith(": give another name\n")
    assert not any(tmp_path.iterdir())


def test_impossible_folder_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ghosttrace.model.checkpoint.load", lambda *given: pytest.fail("the model was loaded"))
    (tmp_path / "notes.txt").touch()
    for out in (LONG, NOT_UTF8, str(tmp_path)):
        assert ghosttrace(*BITS, out).returncode == 2


def test_python_refuses_impossible_folders_before_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghosttrace.ghost_bits.run.measure", lambda *given: pytest.fail("measured"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        gt.bits("toy-open", bench="ledger-h1", limit=1, out=NOT_UTF8)


def draw() -> Figure:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], [1, 0], marker="o", clip_on=True)
    return figure


def test_equal_figures_are_equal_files(tmp_path: Path) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    for stream in (first, second):
        save_figure(draw(), stream, "svg")
    assert first.getvalue() == second.getvalue() and b"dc:date" not in first.getvalue()
    (tmp_path / "figures").mkdir()
    write_figure(tmp_path, "line", draw())
    assert b"dc:date" not in (tmp_path / "figures" / "line.svg").read_bytes()
    assert (tmp_path / "figures" / "line.png").exists()
