"""A run begun from Python goes on from Python, and its result is that of its folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

import ghosttrace as gt


class StoppedError(Exception):
    """Ends a run half-way."""


def stop_after(samples: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if done >= samples:
            raise StoppedError

    return progress


def test_a_resumed_run_equals_its_folder_though_the_batch_size_changed(tmp_path: Path) -> None:
    model, run = gt.load("toy-mixed"), tmp_path / "run"
    with pytest.raises(StoppedError):
        gt.ablate(model, "ledger-h1", ["restart"], limit=6, batch_size=2, out=run, progress=stop_after(4))
    with pytest.warns(gt.RunWarning, match=r"settings\.batch_size is 3 now and 2 in the run"):
        found = gt.ablate(model, "ledger-h1", ["restart"], limit=6, batch_size=3, resume=run)
    assert found == gt.open_run(run) and found.configuration["settings"]["batch_size"] == 2
    with pytest.raises(gt.UserError, match=r"nothing is left to do$"):
        gt.ablate(model, "ledger-h1", ["restart"], limit=6, resume=run)


def test_a_run_of_the_command_line_goes_on_there(tmp_path: Path) -> None:
    model, run = gt.load("toy-mixed"), tmp_path / "run"
    settings = {"bench": "ledger-h1", "limit": 3, "batch_tokens": 1}
    with pytest.raises(StoppedError):
        gt.bits(model, **settings, out=run, options={"bench": "ledger-h1"}, progress=stop_after(1))
    with pytest.raises(gt.UserError, match="go on with it with ghosttrace bits --resume"):
        gt.bits(model, **settings, resume=run)
