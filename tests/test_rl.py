"""`ghosttrace rl`: log-probabilities under the law, the reference model, forced tokens, rewards, killed runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import ghosttrace
from helpers.training import RL_FLAGS, interrupted_at
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from ghosttrace.errors import UserError
from ghosttrace.law.layout import open_layout, sealed_layout
from ghosttrace.model.attention import attending
from ghosttrace.model.checkpoint import load
from ghosttrace.model.states import model_inputs
from ghosttrace.training.grpo import ErasingGRPOTrainer, check_trl
from ghosttrace.training.recipe import parse_flags
from ghosttrace.training.rewards import checked, parse_rewards
from ghosttrace.training.rl import PAPER_DEFAULTS, UNSUPPORTED_FLAGS, RLRecipe, rl

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
RECIPE = RLRecipe("toy-open", "ledger-h1", limit=8, trainer=RL_FLAGS)
Batch = dict[str, Any]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ErasingGRPOTrainer, Batch]]:
    """The batches whose loss a trainer computes, before each step changes the policy."""
    seen: list[tuple[ErasingGRPOTrainer, Batch]] = []
    compute = ErasingGRPOTrainer._compute_loss

    def record(self: ErasingGRPOTrainer, model: Any, inputs: Batch) -> Any:
        loss = compute(self, model, inputs)
        seen.append((self, inputs | {"scored": self._scored}))
        return loss

    monkeypatch.setattr(ErasingGRPOTrainer, "_compute_loss", record)
    return seen


def parity(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that differs between the members of a group, though every answer may be right."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def log(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "samples.parquet")


def reference(row: Batch, sealed: bool, temperature: float = 2.0) -> torch.Tensor:
    """Log-probabilities of one completion, by a masked forward pass of the untrained model over its own layout."""
    checkpoint = load("toy-open")
    prompt = row["prompt_ids"][row["prompt_mask"].bool()].tolist()
    completion = row["completion_ids"][row["completion_mask"].bool()].tolist()
    layout = (sealed_layout if sealed else open_layout)([*prompt, *completion], checkpoint.law)
    with torch.no_grad(), attending(checkpoint.model, "sdpa") as model:
        logits = model(**model_inputs([layout], model)).logits[0] / temperature
    found = []
    for index in range(len(prompt), len(prompt) + len(completion)):
        column = int(np.flatnonzero(layout.token_index == index)[0])
        found.append(logits[column - 1].log_softmax(-1)[layout.tokens[column]])
    return torch.stack(found)


@pytest.mark.parametrize("sealed", [False, True])
def test_training_sees_what_the_rollouts_saw(
    sealed: bool, batches: list[tuple[ErasingGRPOTrainer, Batch]], tmp_path: Path
) -> None:
    rl(replace(RECIPE, sealed=sealed), tmp_path / "run", rewards=[parity])
    first = batches[0][1]
    mask = (first["completion_mask"] * first["tool_mask"]).bool()
    assert 0 < mask.sum() < first["completion_mask"].sum()  # the harness forced some tokens
    assert (first["scored"] - first["sampling_per_token_logps"])[mask].abs().max() < 1e-4
    for row in range(2):
        values = {name: value[row] for name, value in first.items() if torch.is_tensor(value) and value.ndim > 1}
        expected = reference(values, sealed)
        assert (values["scored"][: len(expected)] - expected).abs().max() < 1e-5
        assert (expected - reference(values, not sealed)).abs().max() > 0.1
    run = log(tmp_path / "run")
    assert run["rollout_gap"].iloc[0] < 1e-4 and run["kl"].iloc[0] == pytest.approx(0, abs=1e-7)
    assert run["reward_std"].iloc[0] > 0 and run["kl"].iloc[1] > 0
    trained = load(str(tmp_path / "run" / "model"))
    assert trained.stages[-1] == ("rl-sealed" if sealed else "rl") and trained.sealed == sealed


def test_a_reference_model_that_sees_everything_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The trap of entering `attending` for the policy alone: its divergence from itself is then not 0."""

    def policy_only(self: ErasingGRPOTrainer) -> Any:
        return attending(self.accelerator.unwrap_model(self.model))

    monkeypatch.setattr(ErasingGRPOTrainer, "under_law", policy_only)
    rl(RECIPE, tmp_path / "run")
    assert log(tmp_path / "run")["kl"].iloc[0] > 0.01


def test_forced_tokens_have_no_gradient(batches: list[tuple[ErasingGRPOTrainer, Batch]], tmp_path: Path) -> None:
    rl(replace(RECIPE, max_block_tokens=3), tmp_path / "run")
    trainer, inputs = batches[0]
    checkpoint = load("toy-open")
    ends = inputs["completion_ids"] == checkpoint.markup.block_end
    assert ends.any() and (inputs["tool_mask"][ends] == 0).any()
    model = trainer.accelerator.unwrap_model(trainer.model)
    gradients = []
    for changed in (False, True):
        batch = dict(inputs)
        if changed:  # other sampled log-probabilities of forced tokens change nothing
            batch["sampling_per_token_logps"] = batch["sampling_per_token_logps"] - 3.0 * (1 - batch["tool_mask"])
        model.zero_grad()
        with trainer.under_law():
            trainer._compute_loss(model, batch).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)


def test_rewards_are_parsed_and_checked(tmp_path: Path) -> None:
    rewards, weights = parse_rewards("correct, format:0.1,compression:2")
    assert [reward.__name__ for reward in rewards] == ["correct", "format", "compression"] and weights == [1, 0.1, 2]
    columns = {"correct": [True, False], "compression": [0.5, 0.5], "format": [False, True]}
    assert [reward(**columns) for reward in rewards] == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]]
    for text, message in (("right", "no reward 'right'"), ("format:x", "must be a number"), ("format:inf", "finite")):
        with pytest.raises(UserError, match=message):
            parse_rewards(text)

    def broken(text: list[str], **_: Any) -> list[float]:
        return [float("nan")] * len(text)

    with pytest.raises(UserError, match=r"the reward broken returned nan for the response"):
        rl(RECIPE, tmp_path / "run", rewards=[broken])
    assert checked(rewards[0])(**columns, text=["a", "b"]) == [1.0, 0.0]


def test_interrupted_and_resumed_run_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    """Rollouts depend on the seed, the step and the row alone, so a resumed run writes the same ones."""
    recipe = replace(RECIPE, trainer=(*RL_FLAGS, "--max_steps", "4", "--save_steps", "2"))
    whole = rl(recipe, tmp_path / "whole", rewards=[parity])

    with interrupted_at(3):
        rl(recipe, tmp_path / "run", rewards=[parity])
    resumed = rl(recipe, resume=tmp_path / "run", rewards=[parity])
    weights = [load(str(folder / "model")).model.state_dict() for folder in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert log(whole)["loss"].tolist() == log(resumed)["loss"].tolist() and log(whole)["reward_std"].min() > 0
    before = load("toy-open").model.state_dict()
    assert not all(torch.equal(weights[0][name], before[name]) for name in before)
    assert json.loads((resumed / "summary.json").read_text())["command"] == "rl"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bench": "ledger"}, "several benchmarks"),
        ({"law": "none"}, "was trained under the law memento"),
        ({"trainer": ("--num_generations", "3")}, "divisible by num_generations"),
        ({"trainer": ("--use_vllm", "true")}, "has no effect on this trainer"),
        ({"trainer": ("--max_completion_length", "100000")}, "lower --max_completion_length"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        rl(replace(RECIPE, **({"trainer": (*RL_FLAGS, *changes.pop("trainer", ()))} | changes)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sharded_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its processes would wait for each other's layers while they write responses of unequal lengths."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="needs the whole model to write rollouts"):
        rl(RECIPE, tmp_path / "run")


def test_the_configuration_for_8b_has_the_paper_s_batch() -> None:
    flags = ("--config", str(ROOT / "examples" / "train" / "rl-8b.yaml"))
    args, model_args = parse_flags(flags, GRPOConfig, PAPER_DEFAULTS, UNSUPPORTED_FLAGS)
    assert 8 * args.per_device_train_batch_size * args.gradient_accumulation_steps == 240 * args.num_generations
    assert model_args.use_peft and (args.loss_type, args.epsilon_high, args.beta) == ("cispo", 1.2, 0.001)


def test_the_command_needs_a_model_and_problems() -> None:
    run = ghosttrace("rl")
    assert run.returncode == 2 and "a new run needs --model and --bench" in run.stderr


def test_another_trl_is_noticed() -> None:
    check_trl(GRPOTrainer)
    with pytest.raises(UserError, match="install the tested version"):
        check_trl(object)
