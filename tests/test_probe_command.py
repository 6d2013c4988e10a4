"""`ghosttrace probe` as a command: bad input in a sentence, and runs that are killed."""

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
    """What the command says instead of probing."""
    with pytest.raises(UserError) as refused:
        cli.app(["probe", *arguments], standalone_mode=False)
    return str(refused.value)


def traces_file(folder: Path, *second: str) -> str:
    """Traces of four blocks in the toys' words, told apart by the second block."""
    path = folder / "traces.jsonl"
    with path.open("w") as file:
        for text in second:
            blocks = ("abc", text, "cde", "abc")
            pairs = (f"<|block_start|>{b}<|block_end|><|summary_start|>abc<|summary_end|>" for b in blocks)
            file.write(json.dumps({"problem": "x179", "response": f"<think>{''.join(pairs)}</think>179"}) + "\n")
    return str(path)


def test_bad_input_is_refused_in_a_sentence(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert "note-0 has 8 samples for 10 classes: give more samples" in refusal("--samples", "8", *out)
    short = traces_file(tmp_path, *["abc"] * 30)
    longer = refusal("--traces", short, "--secret", "digits:12", "--samples", "20", *out)
    assert "has 3 tokens and the secret" in longer and "choose another block or a shorter secret" in longer
    once = traces_file(tmp_path, "cbc", *["abc", "bbc"] * 14)
    said = refusal("--traces", once, "--secret", "regex:([abc])bc", "--hops", "0", *out)
    assert "'c' in one sample alone: leave it out" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options, said",
    [
        (["--carriers", "delimiters"], "no trace keeps its delimiters"),
        (["--hops", "7"], "no trace has memento tokens at hop 7: hops here end at 2"),
        (["--carriers", "heads"], "--carriers is a list of"),
        (["--hops", "-1"], "--hops are 0"),
        (["--layers", "4"], "the model has 4 layers, from 0 to 3"),
        (["--pool", "0"], "--pool is all, mean, or how many"),
        (["--block", "0"], "--block is at least 1"),
        (["--bench", "aime24"], "aime24 has no secrets of its own"),
    ],
)
def test_what_cannot_be_probed(options: list[str], said: str, tmp_path: Path) -> None:
    assert said in refusal("--samples", "100", *options, "--out", str(tmp_path / "run"))


def test_states_that_are_not_finite_name_their_layer(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(resolve_pretrained_path("toy-open"), model)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.2.self_attn.v_proj.weight"][0, 0] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    said = refusal("--model", str(model), "--samples", "100", "--out", str(tmp_path / "run"))
    assert "values of layer 2 are not finite" in said


def work(arguments: list[str]) -> None:
    """One process's work on a run."""
    import torch

    torch.set_num_threads(1)
    cli.app(arguments, standalone_mode=False)


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("samples.parquet", "summary.json", "traces.parquet")]


@pytest.mark.slow
def test_a_killed_run_ends_as_one_left_alone(tmp_path: Path) -> None:
    """SIGKILL at random moments, in the extraction and among the probes; the end is the same to the byte."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ghosttrace.probing.run"])

    def start(*arguments: Any) -> Any:
        child = context.Process(target=work, args=([*map(str, arguments)],))
        child.start()
        return child

    alone = tmp_path / "alone"
    start(*QUICK, "--out", alone).join()
    total, draw, unfinished = len(pd.read_parquet(alone / "samples.parquet")), random.Random(1), 0
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
        assert contents(folder) == contents(alone), kill
        assert not (folder / "features").exists()
    assert unfinished >= KILLS // 2  # else the kills came too late to show anything


@pytest.mark.slow
def test_a_failed_control_is_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghosttrace.probing.run.failed_controls", lambda results: ("sealed: sabotaged",))
    done = CliRunner().invoke(cli.app, [*QUICK, "--layers", "3", "--out", str(tmp_path / "run")])
    assert done.exit_code == 12
    assert not json.loads((tmp_path / "run" / "summary.json").read_text())["valid"]
