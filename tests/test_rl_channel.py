"""The ghost channel during reinforcement learning: its measurement step by step, and as a reward."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.training import RL_FLAGS
from safetensors.torch import load_file
from transformers import Trainer

import ghosttrace as gt
from ghosttrace.bench import as_benches
from ghosttrace.bench.reference_traces import reference_traces
from ghosttrace.errors import UserError
from ghosttrace.law.layout import open_layout, sealed_layout
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import Checkpoint, load
from ghosttrace.model.states import model_inputs
from ghosttrace.training.channel import FILE, ChannelCallback, answer_bits, channel_figure
from ghosttrace.training.rewards import REWARDS
from ghosttrace.training.rl import CHANNEL_SEED, RLRecipe, rl
from ghosttrace.training.rollouts import Rollouts

pytestmark = pytest.mark.slow

FLAGS = (*RL_FLAGS, "--max_completion_length", "160", "--learning_rate", "1e-5")  # long enough for the answer
RECIPE = RLRecipe("toy-open", "ledger-h1", limit=8, channel_every=1, channel_problems=6, trainer=FLAGS)


def ids_of(checkpoint: Checkpoint, bench: str, n: int) -> list[list[int]]:
    return [trace.ids for trace in reference_traces(checkpoint, *as_benches(bench, n, 0))]


def log2_of_answer(checkpoint: Checkpoint, ids: list[int], make: Any) -> float:
    """Return log2 p of what follows the last memento, by one masked pass over a layout."""
    layout = make(ids, checkpoint.law)
    with torch.no_grad(), attending(checkpoint.model, "sdpa") as model:
        logits = model(**model_inputs([layout], model)).logits[0].log_softmax(-1) / np.log(2)
    last = len(ids) - 1 - ids[::-1].index(checkpoint.markup.summary_end)
    columns = [int(np.flatnonzero(layout.token_index == index)[0]) for index in range(last + 1, len(ids))]
    return sum(float(logits[column - 1, layout.tokens[column]]) for column in columns)


def test_answer_bits_equal_two_masked_passes() -> None:
    checkpoint = load("toy-open")
    traces = ids_of(checkpoint, "ledger-h1", 20)
    expected = [
        log2_of_answer(checkpoint, ids, open_layout) - log2_of_answer(checkpoint, ids, sealed_layout)
        for ids in traces[:4]
    ]
    found = answer_bits(checkpoint, traces)
    np.testing.assert_allclose(found[:4], expected, atol=1e-3)
    assert found.mean() > 1  # the model reads the hidden digit in its cache


def test_nothing_erased_gives_no_bits() -> None:
    checkpoint = load("toy-open")
    ids = ids_of(checkpoint, "ledger-h1", 1)[0]
    assert answer_bits(checkpoint, [ids[: ids.index(checkpoint.markup.block_end)]]) == [0.0]


def test_bits_under_another_law_cover_all_that_follows_an_erasure() -> None:
    checkpoint = load("toy-open", law="window:40,8")
    ids = ids_of(load("toy-open"), "ledger-h1", 1)[0]
    arm = gt.bits(checkpoint, bench="ledger-h1", limit=1).results
    total = arm[(arm["arm"] == "restart") & (arm["by"] == "all")].iloc[0]
    assert answer_bits(checkpoint, [ids])[0] == pytest.approx(total["bits_per_trace"], abs=1e-6)


def test_channel_is_measured_at_every_step_and_changes_no_training(tmp_path: Path) -> None:
    rl(RECIPE, tmp_path / "measured")
    rl(replace(RECIPE, channel_every=None), tmp_path / "plain")
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("measured", "plain")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert not (tmp_path / "plain" / FILE).exists()
    logs = [pd.read_parquet(tmp_path / name / "samples.parquet") for name in ("measured", "plain")]
    same = ["step", "loss", "reward", "rollout_kl", "kl", "grad_norm"]
    pd.testing.assert_frame_equal(logs[0][same], logs[1][same])
    assert list(logs[0]["step"]) == [1, 2]
    table = pd.read_parquet(tmp_path / "measured" / FILE).set_index("step")
    assert list(table.index) == [0, 1, 2] and (tmp_path / "measured" / "channel.png").stat().st_size > 10_000
    for step, model in ((0, "toy-open"), (2, str(tmp_path / "measured" / "model"))):
        checkpoint, row = load(model), table.loc[step]
        run = gt.ablate(checkpoint, "ledger-h1", "restart", limit=6, seed=CHANNEL_SEED).results.set_index("arm")
        assert run.loc["memento", "accuracy"] > run.loc["restart", "accuracy"]
        assert row["accuracy"] == run.loc["memento", "accuracy"] and row["sealed"] == run.loc["restart", "accuracy"]
        assert row["drop"] == run.loc["restart", "effect"]
        traces = [trace.ids for trace in reference_traces(checkpoint, *as_benches("ledger-h1", 6, CHANNEL_SEED))]
        bits = answer_bits(checkpoint, traces)
        assert row["answer_bits"] == pytest.approx(bits.mean(), abs=1e-4)
        assert bits.min() < row["answer_bits_low"] < bits.mean() < row["answer_bits_high"]
        assert row["peak_kv_tokens"] == run.loc["memento", "peak_kv_tokens"] and 0 < row["compression"] < 1


def test_drop_is_adjusted_where_a_benchmark_with_enough_text_is_measured_too(tmp_path: Path) -> None:
    flags = (*FLAGS, "--max_steps", "1")
    rl(replace(RECIPE, channel_bench="ledger-h0,ledger-h1", channel_every=5, trainer=flags), tmp_path / "run")
    table = pd.read_parquet(tmp_path / "run" / FILE)
    assert list(table["step"]) == [0, 0, 1, 1]
    first = table[table["step"] == 0].set_index("bench")
    assert np.isnan(first.loc["ledger-h0", "content"])
    drops = first["drop"]
    assert first.loc["ledger-h1", "content"] == pytest.approx(drops["ledger-h1"] - drops["ledger-h0"])


def test_another_law_is_measured_too(tmp_path: Path) -> None:
    flags = (*FLAGS, "--max_steps", "1", "--report_to", "tensorboard")
    rl(replace(RECIPE, model=windowed(tmp_path), channel_every=5, trainer=flags), tmp_path / "run")
    table = pd.read_parquet(tmp_path / "run" / FILE)
    assert list(table["step"]) == [0, 1] and "content" not in table and table["answer_bits"].notna().all()


def windowed(folder: Path) -> str:
    """Write `toy-open` as a model under a window, and return its folder."""
    checkpoint = load("toy-open")
    checkpoint.model.config.ghosttrace = {"law": "window:40,8"}
    checkpoint.model.save_pretrained(folder / "windowed")
    checkpoint.tokenizer.save_pretrained(folder / "windowed")
    return str(folder / "windowed")


def test_a_run_killed_in_its_last_measurement_makes_it_when_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags = (*FLAGS, "--save_steps", "1")
    finish = ChannelCallback.finish
    monkeypatch.setattr(ChannelCallback, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        rl(replace(RECIPE, channel_every=5, trainer=flags), tmp_path / "run")
    monkeypatch.setattr(ChannelCallback, "finish", finish)
    rl(replace(RECIPE, channel_every=5, trainer=flags), resume=tmp_path / "run")
    assert list(pd.read_parquet(tmp_path / "run" / FILE)["step"]) == [0, 2]
    assert (tmp_path / "run" / "channel.png").exists()


def interrupt(self: ChannelCallback) -> None:
    raise KeyboardInterrupt


def test_a_resumed_run_drops_measurements_that_are_ahead_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def table(step: int) -> pd.DataFrame:
        return pd.DataFrame([{"step": step, "bench": "b", "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}])

    pd.concat([table(step) for step in (0, 2, 4)]).to_parquet(tmp_path / FILE, index=False)
    measured: list[int] = []
    state = SimpleNamespace(global_step=3, is_world_process_zero=True)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(unwrap_model=lambda model: model), model=None)
    control = SimpleNamespace(should_log=True)
    monkeypatch.setattr(Trainer, "log", lambda self, row: setattr(control, "should_log", False))

    def measure(model: Any) -> pd.DataFrame:
        measured.append(state.global_step)
        return table(state.global_step).drop(columns="step")

    measure.every = 2  # type: ignore[attr-defined]
    callback: Any = ChannelCallback(trainer, measure, tmp_path)  # type: ignore[arg-type]
    callback.on_train_begin(None, state, control)  # not a step at which an uninterrupted run measures
    for state.global_step in (4, 5):
        callback.on_step_end(None, state, control)
    assert control.should_log
    assert measured == [4] and list(pd.read_parquet(tmp_path / FILE)["step"]) == [0, 2, 4]


@pytest.mark.long
def test_two_processes_train_while_one_measures(tmp_path: Path) -> None:
    """A log row of the main process alone must not change whether the others expect the row of a step."""
    flags = (*RL_FLAGS, "--max_completion_length", "30", "--max_steps", "3", "--logging_steps", "1")
    flags += ("--gradient_accumulation_steps", "1", "--use_cpu", "true", "--ddp_timeout", "100", "--bf16", "false")
    port = str(20_000 + os.getpid() % 20_000)
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    command += ["-m", "ghosttrace", "rl", "--model", "toy-open", "--bench", "ledger-h1", "--limit", "8"]
    command += ["--channel-every", "2", "--channel-problems", "2", "--out", str(tmp_path / "run"), *flags]
    subprocess.run([sys.executable, *command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert list(pd.read_parquet(tmp_path / "run" / FILE)["step"]) == [0, 2, 3]
    assert list(pd.read_parquet(tmp_path / "run" / "samples.parquet")["step"]) == [1, 2, 3]


def test_channel_reward_is_the_bits_at_the_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    call = Rollouts.__call__

    def record(self: Rollouts, prompts: Any, trainer: Any) -> dict[str, Any]:
        found = call(self, prompts, trainer)
        ids = [[*prompt, *rest] for prompt, rest in zip(found["prompt_ids"], found["completion_ids"], strict=True)]
        model = trainer.accelerator.unwrap_model(trainer.model)
        seen.append(found | {"expected": answer_bits(self.checkpoint(model), ids)})
        return found

    monkeypatch.setattr(Rollouts, "__call__", record)
    flags = (*FLAGS, "--max_steps", "1")
    rl(replace(RECIPE, rewards="correct,channel:-0.5", channel_every=None, trainer=flags), tmp_path / "run")
    found = seen[0]
    np.testing.assert_allclose(found["channel"], found["expected"], atol=1e-6)
    assert max(found["channel"]) > 0.5
    reward = np.mean(np.array(found["correct"], float) - 0.5 * np.maximum(found["channel"], 0))
    log = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert log["reward"].iloc[0] == pytest.approx(reward, abs=1e-4)


def test_negative_bits_earn_nothing() -> None:
    """A penalty would otherwise reward answers that no cache that saw the blocks would give."""
    assert REWARDS["channel"](channel=[-2.0, 0.0, 1.5]) == [0.0, 0.0, 1.5]


@pytest.mark.parametrize("options", [{"channel_every": 0}, {"channel_problems": 0}])
def test_numbers_that_are_not_positive_are_refused(options: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        rl(replace(RECIPE, **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_figure_shows_what_was_measured() -> None:
    row = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}
    row |= {"sealed": 0.1, "sealed_low": 0.0, "sealed_high": 0.2}
    figure = channel_figure(pd.DataFrame([row | {"step": step, "bench": "ledger-h1"} for step in (0, 5)]))
    lines = figure.axes[0].get_lines()
    assert [list(line.get_ydata()) for line in lines] == [[50.0, 50.0], [10.0, 10.0]]
    assert not figure.axes[1].get_lines()  # the benchmark has no reference responses
