"""`gt.sft` and `gt.rl`: training from Python gives what the commands give, and its runs open as results."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import ghosttrace
from helpers.training import QUICK, RL_FLAGS, command, ledger_rows

import ghosttrace as gt
from ghosttrace.training.api import trainer_flags

TRAINER: dict[str, Any] = {"max_length": 256, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
TRAINER |= {"bf16": False, "gradient_checkpointing": False, "disable_tqdm": True, "report_to": "none", "max_steps": 2}


def as_arguments(flags: tuple[str, ...]) -> dict[str, str]:
    return {name.removeprefix("--"): value for name, value in zip(flags[::2], flags[1::2], strict=True)}


@pytest.mark.slow
def test_sft_from_python_equals_the_command(tmp_path: Path) -> None:
    rows = ledger_rows(tmp_path / "rows.jsonl", 16)
    run = gt.sft("toy-open", rows, "sealed", out=tmp_path / "run", trainer=TRAINER)
    flags = ("--data", str(rows), "--out", str(tmp_path / "command"), *QUICK, "--max_steps", "2")
    command("--model", "toy-open", "--stage", "sealed", *flags)
    asked = gt.open_run(tmp_path / "command")
    weights = [gt.load(str(folder / "model")).model.state_dict() for folder in (tmp_path / "run", tmp_path / "command")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert isinstance(asked, gt.SftResult) and run.log.equals(asked.log) and len(run.log) == 2
    assert gt.open_run(tmp_path / "run") == run and run.valid and run.failures == ()
    assert run.load().stages[-1] == "sealed" and run.findings[0].startswith("Training steps: 2")
    assert {line.get_label() for line in run.figure("log").axes[0].lines} >= {"block", "memento"}
    with pytest.raises(gt.UserError, match="a training run has no report"):
        run.report()


def always(completions: list[Any], **_: Any) -> list[float]:
    """Reward every response."""
    return [1.0] * len(completions)


@pytest.mark.slow
def test_a_run_from_python_is_resumed_from_python(tmp_path: Path) -> None:
    folder, trainer = tmp_path / "run", as_arguments(RL_FLAGS) | {"save_steps": "1"}

    def stopped(trainer_state: Any, completions: list[Any], **_: Any) -> list[float]:
        if trainer_state.global_step == 1:
            raise KeyboardInterrupt
        return [1.0] * len(completions)

    with pytest.raises(KeyboardInterrupt):
        gt.rl("toy-open", "ledger-h1", stopped, out=folder, trainer=trainer, limit=8)
    asked = ghosttrace("rl", "--resume", str(folder))
    assert asked.returncode == 2 and "resume it from Python" in asked.stderr
    with pytest.raises(gt.UserError, match="cannot be resumed: rewards is"):
        gt.rl("toy-open", "ledger-h1", always, resume=folder, trainer=trainer, limit=8)
    assert not (folder / "summary.json").exists()


@pytest.mark.slow
def test_rl_from_python_gives_its_log_and_the_channel(tmp_path: Path) -> None:
    settings = {"limit": 8, "channel_every": 2, "channel_problems": 4}
    run = gt.rl("toy-open", "ledger-h1", "correct", out=tmp_path / "run", trainer=as_arguments(RL_FLAGS), **settings)
    assert gt.open_run(tmp_path / "run") == run and isinstance(run, gt.RLResult)
    assert run.channel["step"].tolist() == [0, 2] and run.log["reward"].notna().all()
    assert [line.get_label() for line in run.figure("log").axes[0].lines] == ["correct"]
    assert gt.load(run.model).stages[-1] == "rl"
    (tmp_path / "run" / "channel.parquet").unlink()
    with pytest.raises(gt.UserError, match="repeat it with channel_every"):
        _ = gt.RLResult.open(tmp_path / "run").channel


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: gt.sft("toy-open", [], "memento"), "no training data"),
        (lambda: gt.sft("toy-open", "rows.jsonl", "other"), "must be one of full, memento, sealed"),  # type: ignore[arg-type]
        (
            lambda: gt.sft("toy-open", "rows.jsonl", learning_rate=1e-3),
            "Recipe has no option learning_rate: use bad_rows",
        ),
        (lambda: gt.sft(gt.load("toy-open"), "rows.jsonl"), "not a Checkpoint"),  # type: ignore[arg-type]
        (lambda: gt.sft("toy-open", "rows.jsonl", kernel="fast"), "--kernel must be"),
        (lambda: gt.sft("toy-open", "rows.jsonl", sealed_arms="restart-bare"), "--sealed-arms requires --stage sealed"),
        (lambda: gt.rl("toy-open", "ledger-h1", ["correct"]), "rewards must be names"),  # type: ignore[list-item]
        (lambda: gt.rl("toy-open", "ledger-h1", []), "rewards must be names"),
        (lambda: gt.rl("toy-open", "ledger-h1", backend="other"), "--backend must be hf or vllm"),
        (
            lambda: gt.rl("toy-open", "ledger-h1", engine_args={"max_model_len": 9}),
            "--engine-args needs --backend vllm",
        ),
        (lambda: gt.rl("toy-open", "ledger-h1", trainer={"top_p": 0.9}), "--top_p has no effect"),
        (lambda: gt.rl("toy-open", "ledger-h1", trainer={"temperature": 0.0}), "--temperature must be above 0"),
        (lambda: gt.rl("toy-open", "ledger-h1", beta=0.1), "RLRecipe has no option beta: use backend"),
        (lambda: gt.rl("toy-open", "ledger-h1", trainer={"lr": 1}), "the trainer does not accept"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call: Any, message: str) -> None:
    with pytest.raises(gt.UserError, match=message):
        call()


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without_trl(name: str, *arguments: Any, **options: Any) -> Any:
        if name in ("ghosttrace.training.recipe", "ghosttrace.training.rl"):
            raise ModuleNotFoundError("No module named 'trl'", name="trl")
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_trl)
    for call in (lambda: gt.sft("toy-open", "rows.jsonl"), lambda: gt.rl("toy-open", "ledger-h1")):
        with pytest.raises(gt.UserError, match=r"trl is not installed: pip install -e '\.\[train\]'"):
            call()


def test_arguments_become_flags() -> None:
    assert trainer_flags({"lora_target_modules": ["q", "v"], "eval_steps": None, "model_init_kwargs": {"a": 1}}) == (
        *("--lora_target_modules", "q", "v"),
        *("--model_init_kwargs", '{"a": 1}'),
    )
