"""The command or the Python call that redoes a run: every option returns, and the redone run is equal."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import ghosttrace
from helpers.training import blank_model
from typer.core import TyperOption
from typer.main import get_command

import ghosttrace as gt
from ghosttrace.ablation.arms import Noise
from ghosttrace.cli import main as cli
from ghosttrace.cli.options import NOT_RECORDED
from ghosttrace.report.command import repeat_command
from ghosttrace.results import RESULT_CLASSES
from ghosttrace.runs.call import python_call
from ghosttrace.runs.folder import check_resumable


def parse(name: str, words: list[str]) -> dict[str, Any]:
    """Return the options of a command line as run.json records them."""
    command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    params = command.make_context(name, words).params
    options: dict[str, Any] = json.loads(json.dumps(params, default=str))
    return {name: value for name, value in options.items() if name not in NOT_RECORDED}


def other_values(parameter: TyperOption) -> list[Any]:
    """Return values that an option can have and that are not all its default."""
    if parameter.multiple:
        return [["a b", "c"]]
    kind = parameter.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(next(iter(kind)))]
    return {bool: [True, False], int: [7, 0], float: [0.25]}.get(kind, ["a 'b' $c --d", "x"])


@pytest.mark.parametrize("name", RESULT_CLASSES)
def test_every_option_returns(name: str) -> None:
    command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    defaults, tried = parse(name, []), 0
    for parameter in command.params:
        if parameter.name in NOT_RECORDED or parameter.name not in defaults:
            continue
        for value in other_values(parameter):
            options = defaults | {parameter.name: value}
            text = repeat_command({"command": name, "options": options})
            assert text is not None and text.startswith(f"ghosttrace {name} ")
            assert parse(name, shlex.split(text)[2:]) == options
            tried += value != defaults[parameter.name]
    assert tried > len(defaults)


def test_words_of_a_command() -> None:
    options = {"model": "a b", "mask_delimiters": False, "layers": None, "kv": "v", "keep_last_n_blocks": -1}
    text = repeat_command({"command": "ablate", "options": options})
    assert text == "ghosttrace ablate --model 'a b' --keep-delimiters --kv v --keep-last-n-blocks -1"
    assert repeat_command({"command": "ablate", "options": {}}) is None
    assert repeat_command({"command": "ablate", "options": {}, "call": "ghosttrace.ablate('m')"}) == (
        "ghosttrace.ablate('m')"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("ablate", "--bench", "ledger-h1", "--limit", "3", "--arms", "restart,noise", "--layers", "1", "--kv", "v"),
        ("bits", "--bench", "ledger-h2", "--limit", "2", "--keep-last-n-blocks", "1", "--model", "toy-open"),
    ],
)
def test_redone_command_gives_an_equal_run(words: tuple[str, ...], tmp_path: Path) -> None:
    assert ghosttrace(*words, "--out", str(tmp_path / "one")).returncode == 0
    run = gt.open_run(tmp_path / "one")
    text = repeat_command(run.configuration)
    assert text is not None and text in run.page()
    assert ghosttrace(*shlex.split(text)[1:], "--out", str(tmp_path / "two")).returncode == 0
    assert gt.open_run(tmp_path / "two") == run


CALLS: dict[str, Callable[[], gt.RunResult]] = {
    "ghosttrace.ablate('toy-mixed', bench=['ledger-h1', 'ledger-h2'], arms='restart', limit=2, "
    "sampling={'temperature': 0.5}, "
    "part=ghosttrace.Part(layers=(1,), heads=None, kv=('v',), carrier=None, last=None))": (
        lambda: gt.ablate(
            bench=["ledger-h1", "ledger-h2"],
            arms="restart",
            limit=2,
            sampling={"temperature": 0.5},
            part=gt.Part((1,), kv=("v",)),
        )
    ),
    "ghosttrace.bits(ghosttrace.load('toy-open', keep_last_n_blocks=1).with_law('window:40,10'), bench='ledger-h1', "
    "limit=3)": lambda: gt.bits(
        gt.load("toy-open", keep_last_n_blocks=1).with_law("window:40,10"), bench="ledger-h1", limit=3
    ),
    "ghosttrace.patch('toy-mixed', bench='ledger-h1', kind='swap', block=-1, limit=2)": (
        lambda: gt.patch("toy-mixed", bench="ledger-h1", kind="swap", block=-1, limit=2)
    ),
}


@pytest.mark.parametrize("text", CALLS, ids=lambda text: text[:18])
def test_redone_call_gives_an_equal_run(text: str) -> None:
    run = CALLS[text]()
    assert run.configuration["call"] == repeat_command(run.configuration) == text
    assert eval(text, {"ghosttrace": gt}) == run


def test_values_of_a_call() -> None:
    given = {"model": Path("a/b"), "bench": "x", "limit": np.int64(3), "layers": range(2), "out": "runs/a"}
    assert python_call(gt.probe, given) == "ghosttrace.probe('a/b', bench='x', limit=3, layers=[0, 1])"
    for value in (object(), float("nan"), [object()], {"a": object()}):
        assert python_call(gt.probe, given | {"seed": value}) is None


def test_objects_of_ones_own_have_no_call(tmp_path: Path) -> None:
    run = gt.ablate("toy-mixed", "ledger-h1", [Noise(0.1)], limit=2, out=tmp_path / "run")
    assert run.configuration["call"] is None and repeat_command(run.configuration) is None
    assert "The run was started from Python." in run.page()
    own = blank_model(tmp_path / "model")
    assert gt.load(own, mask_delimiters=True).python_text == f"ghosttrace.load('{own}', mask_delimiters=True)"
    toy = gt.load("toy-mixed")
    kept = replace(toy, policy=replace(toy.policy, keep_last_n_blocks=1))
    assert kept.python_text is None and toy.python_text == "ghosttrace.load('toy-mixed')"
    assert gt.bits(kept, bench="ledger-h1", limit=2).configuration["call"] is None


def test_another_spelling_of_the_call_can_be_resumed() -> None:
    recorded = {"call": "ghosttrace.bits('toy-mixed')", "settings": {"batch_tokens": 4096}}
    current = recorded | {"call": "ghosttrace.bits(ghosttrace.load('toy-mixed'))"}
    assert check_resumable(recorded, current, Path("run")) == []
