"""Runs resumed from Python: the result equals that of the folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import ghosttrace as gt


class StoppedError(Exception):
    """Exception that ends a run early."""


def stop_after(samples: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if done >= samples:
            raise StoppedError

    return progress


def test_resumed_run_with_another_batch_size_equals_its_folder(tmp_path: Path) -> None:
    model, run = gt.load("toy-mixed"), tmp_path / "run"
    with pytest.raises(StoppedError):
        gt.ablate(model, "ledger-h1", ["restart"], limit=6, batch_size=2, out=run, progress=stop_after(4))
    with pytest.warns(gt.RunWarning, match=r"settings\.batch_size is 3 now and 2 in the run"):
        result = gt.ablate(model, "ledger-h1", ["restart"], limit=6, batch_size=3, resume=run)
    assert result == gt.open_run(run) and result.configuration["settings"]["batch_size"] == 2
    with pytest.raises(gt.UserError, match=r"is finished and cannot be resumed: start a new run$"):
        gt.ablate(model, "ledger-h1", ["restart"], limit=6, resume=run)


def test_run_of_the_command_line_is_resumed_by_the_command_line(tmp_path: Path) -> None:
    model, run = gt.load("toy-mixed"), tmp_path / "run"
    settings = {"bench": "ledger-h1", "limit": 3, "batch_tokens": 1}
    with pytest.raises(StoppedError):
        gt.bits(model, **settings, out=run, options={"bench": "ledger-h1"}, progress=stop_after(1))
    with pytest.raises(gt.UserError, match="continue with ghosttrace bits --resume"):
        gt.bits(model, **settings, resume=run)


def test_runs_of_an_older_format_are_refused(tmp_path: Path) -> None:
    run = gt.bits("toy-mixed", bench="ledger-h1", limit=1, out=tmp_path / "run")
    configuration = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(configuration | {"arms": list(configuration["arms"])}))
    assert run.valid
    with pytest.raises(gt.UserError, match="not what this version writes"):
        gt.open_run(tmp_path / "run")
