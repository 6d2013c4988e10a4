"""The command `ghosttrace probe`: invalid input and killed runs."""

import json
import multiprocessing
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ghosttrace.cli import main as cli
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import resolve_pretrained_path
from ghosttrace.runs.folder import is_finished

QUICK = ["probe", "--samples", "300", "--layers", "2,3", "--hops", "0", "--pool", "3", "--kv", "v", "--no-mlp"]
KILLS = 3


def refusal(*arguments: str) -> str:
    """Return the error message of the command."""
    with pytest.raises(UserError) as refused:
        cli.app(["probe", *arguments], standalone_mode=False)
    return str(refused.value)


def traces_file(folder: Path, *second: str) -> str:
    """Write traces of four blocks in the vocabulary of the toys; they differ in the second block."""
    path = folder / "traces.jsonl"
    with path.open("w") as file:
        for text in second:
            blocks = ("abc", text, "cde", "abc")
            pairs = (f"<|block_start|>{b}<|block_end|><|summary_start|>abc<|summary_end|>" for b in blocks)
            file.write(json.dumps({"problem": "x179", "response": f"<think>{''.join(pairs)}</think>179"}) + "\n")
    return str(path)


def test_invalid_input_is_refused(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert "note-0 has 8 samples for 10 classes: give at least 10 samples" in refusal("--samples", "8", *out)
    short = traces_file(tmp_path, *["abc"] * 30)
    longer = refusal("--traces", short, "--secret", "digits:12", "--samples", "20", *out)
    assert "has 3 tokens and the secret" in longer and "choose another block or a shorter secret" in longer
    once = traces_file(tmp_path, "cbc", *["abc", "bbc"] * 14)
    message = refusal("--traces", once, "--secret", "regex:([abc])bc", "--hops", "0", *out)
    assert "'c' in one sample alone: remove it" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--carriers", "delimiters"], "no trace keeps its delimiters"),
        (["--hops", "7"], "no trace has memento tokens at hop 7: give hops up to 2"),
        (["--carriers", "heads"], "--carriers must be a list of"),
        (["--hops", "-1"], "--hops must be 0"),
        (["--layers", "4"], "the model has 4 layers, from 0 to 3"),
        (["--pool", "0"], "--pool must be all, mean or a number"),
        (["--block", "0"], "--block must be at least 1"),
        (["--bench", "aime24"], "aime24 has no secrets of its own"),
    ],
)
def test_unusable_options_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    assert message in refusal("--samples", "100", *options, "--out", str(tmp_path / "run"))


def test_error_for_nonfinite_states_names_the_layer(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(resolve_pretrained_path("toy-open"), model)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.2.self_attn.v_proj.weight"][0, 0] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    message = refusal("--model", str(model), "--samples", "100", "--out", str(tmp_path / "run"))
    assert "values of layer 2 are not finite" in message


def work(arguments: list[str]) -> None:
    """Run the command line, as the work of one process."""
    import torch

    torch.set_num_threads(1)
    cli.app(arguments, standalone_mode=False)


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("samples.parquet", "summary.json", "traces.parquet")]


@pytest.mark.long
@pytest.mark.slow
def test_killed_and_resumed_run_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    """After SIGKILL at random moments (extraction or probing) and resuming, all files are bytewise equal."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ghosttrace.probing.run"])

    def start(*arguments: Any) -> Any:
        child = context.Process(target=work, args=([*map(str, arguments)],))
        child.start()
        return child

    reference = tmp_path / "alone"
    start(*QUICK, "--out", reference).join()
    total, draw, unfinished = len(pd.read_parquet(reference / "samples.parquet")), random.Random(1), 0
    for kill in range(KILLS):
        folder = tmp_path / str(kill)
        child, log = start(*QUICK, "--out", folder), folder / "samples.jsonl"
        wanted = draw.randrange(total * kill // KILLS + 1)
        while child.is_alive() and not (log.exists() and log.read_bytes().count(b"\n") >= wanted):
            time.sleep(0.002)
        child.kill()
        child.join()
        unfinished += not is_finished(folder)
        start("probe", "--resume", folder).join()
        assert contents(folder) == contents(reference), kill
        assert not (folder / "features").exists()
    assert unfinished >= KILLS // 2  # otherwise the kills came too late to test anything


@pytest.mark.slow
def test_failed_control_gives_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghosttrace.probing.run.failed_controls", lambda results: ("sealed: sabotaged",))
    done = CliRunner().invoke(cli.app, [*QUICK, "--layers", "3", "--out", str(tmp_path / "run")])
    assert done.exit_code == 12
    assert not json.loads((tmp_path / "run" / "summary.json").read_text())["valid"]
