"""`ghosttrace sft`: stages, losses, killed runs, adapters, real traces and two processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.losses import nll, packed
from helpers.paths import DATA, requires_data
from helpers.training import QUICK, blank_model, command, ledger_rows
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from ghosttrace.cli import main as cli
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.model.checkpoint import load, resolve_pretrained_path
from ghosttrace.runs.folder import new_run_folder
from ghosttrace.training.examples import IGNORE_INDEX, STAGES, Example
from ghosttrace.training.recipe import Recipe
from ghosttrace.training.sft import last_checkpoint, sft

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ledger_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


def losses(folder: Path) -> list[float]:
    return pd.read_parquet(folder / "samples.parquet")["loss"].tolist()


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    return blank_model(tmp_path / "blank")


def test_stages_and_policy_are_recorded_in_sequence(rows: Path, blank: Path, tmp_path: Path) -> None:
    model, policy_options = str(blank), ["--mask-delimiters"]
    for number, stage in enumerate(("full", "memento", "sealed")):
        out = tmp_path / stage
        flags = [*QUICK, "--max_steps", "6", "--learning_rate", "1e-3", "--packing", str(number == 1)]
        command("--model", model, "--data", str(rows), "--stage", stage, *policy_options, "--out", str(out), *flags)
        model, policy_options = str(out / "model"), []
        checkpoint = load(model)
        assert checkpoint.policy == Policy(True, keep_last_n_blocks=-1 if stage == "full" else 0)
        assert checkpoint.sealed == (stage == "sealed") and len(checkpoint.stages) == number + 1
        log = pd.read_parquet(out / "samples.parquet")
        assert log["loss"].iloc[-1] < log["loss"].iloc[0]
        assert {"loss_block", "loss_memento", "loss_delimiter", "loss_answer", "loss_text"} <= set(log)
    record = json.loads((tmp_path / "sealed" / "model" / "config.json").read_text())["ghosttrace"]
    assert record["stages"] == ["full", "memento", "sealed"]
    summary = json.loads((tmp_path / "sealed" / "summary.json").read_text())
    assert summary["command"] == "sft" and summary["steps"] == 6 and len(summary["results"]) == 1
    report = json.loads((tmp_path / "memento" / "examples.json").read_text())
    assert report["rows"] == report["used"] == 48 and report["compression"] > 1.4
    with pytest.raises(UserError, match="is finished"):
        sft(Recipe(model, (str(rows),), "sealed", trainer=tuple(QUICK)), resume=tmp_path / "sealed")


def test_packing_does_not_change_losses(rows: Path, tmp_path: Path) -> None:
    """Two traces per row and one row per step give the losses of two rows per step."""
    flags = [*QUICK, "--max_steps", "1", "--learning_rate", "0", "--gradient_accumulation_steps", "12"]
    rows_by_run = []
    for pack in ("true", "false"):
        out = tmp_path / pack
        batch = ["--per_device_train_batch_size", "2" if pack == "true" else "4", "--packing", pack]
        command("--model", "toy-open", "--data", str(rows), "--out", str(out), *flags, *batch)
        rows_by_run.append(pd.read_parquet(out / "samples.parquet").iloc[0])
    assert rows_by_run[0]["loss"] == pytest.approx(rows_by_run[1]["loss"], rel=1e-3)
    assert rows_by_run[0]["loss_block"] == pytest.approx(rows_by_run[1]["loss_block"], rel=1e-2)


def test_trainer_loss_equals_the_loss_outside_the_trainer(tmp_path: Path) -> None:
    """In every stage the loss equals that of the examples outside the trainer, and the stages differ."""
    few, expected = ledger_rows(tmp_path / "few.jsonl", 4), {}
    for stage in STAGES:
        out = tmp_path / stage
        flags = [*QUICK, "--max_steps", "1", "--learning_rate", "0"]
        command("--model", "toy-open", "--data", str(few), "--stage", stage, "--out", str(out), *flags)
        examples = pd.read_parquet(out / "examples.parquet").to_dict("records")
        made = [Example(**{name: np.asarray(row[name]) for name in row}) for row in examples]
        per_token, labels = nll(load("toy-open").model, [packed(item) for item in made], "sdpa")
        expected[stage] = float(per_token.sum() / (labels != IGNORE_INDEX).sum())
        assert losses(out)[0] == pytest.approx(expected[stage], rel=1e-4)
    assert expected["full"] > expected["memento"] + 0.1 and expected["sealed"] > expected["memento"] + 0.1


def test_losses_by_kind_sum_to_the_total(rows: Path, tmp_path: Path) -> None:
    command("--model", "toy-open", "--data", str(rows), "--out", str(tmp_path / "run"), *QUICK, "--max_steps", "2")
    log = pd.read_parquet(tmp_path / "run" / "samples.parquet").iloc[0]
    share = {"text": 2, "block": 4 * 17, "memento": 4 * 3, "delimiter": 16, "answer": 5}  # `<think>`; `</think>`
    share = share | {"text": 1}
    total = sum(share.values())
    mean = sum(log[f"loss_{name}"] * count for name, count in share.items()) / total
    assert log["loss"] == pytest.approx(mean, rel=1e-4)


def test_generated_samples_and_held_out_loss(rows: Path, tmp_path: Path) -> None:
    """A trained model generates valid format; a model with zeroed delimiter embeddings does not."""
    held_out, sampled = ledger_rows(tmp_path / "held-out.jsonl", 8, seed=1), []
    broken = load("toy-open")
    broken.model.get_input_embeddings().weight.data[list(broken.markup.delimiters)] = 0
    broken.model.save_pretrained(tmp_path / "broken")
    broken.tokenizer.save_pretrained(tmp_path / "broken")
    for model in ("toy-open", str(tmp_path / "broken")):
        out = tmp_path / "runs" / Path(model).name
        flags = [*QUICK, "--max_steps", "2", "--learning_rate", "1e-9", "--eval_strategy", "steps", "--eval_steps", "1"]
        data = ["--data", str(rows), "--eval-data", str(held_out), "--samples", "6"]
        command("--model", model, *data, "--out", str(out), *flags)
        sampled.append(json.loads((out / "summary.json").read_text())["sampled"])
        state = json.loads((out / "checkpoints" / "checkpoint-2" / "trainer_state.json").read_text())
        assert [row["step"] for row in state["log_history"] if "eval_loss_memento" in row] == [1, 2]
    good, bad = sampled
    assert len(good) == 3 and good[-1]["sampled_valid"] >= 0.8 and good[-1]["sampled_compression"] > 1.5
    assert bad[-1]["sampled_valid"] <= 0.2


def test_gradient_checkpointing_does_not_change_losses(rows: Path, tmp_path: Path) -> None:
    for value in ("true", "false"):
        flags = [*QUICK, "--max_steps", "3", "--gradient_checkpointing", value, "--learning_rate", "1e-3"]
        command("--model", "toy-mixed", "--data", str(rows), "--out", str(tmp_path / value), *flags)
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), rel=1e-5)


def test_adapter_is_merged_into_a_loadable_model(rows: Path, tmp_path: Path) -> None:
    flags = [
        *QUICK,
        "--max_steps",
        "2",
        "--learning_rate",
        "1e-2",
        "--use_peft",
        "--lora_target_modules",
        "q_proj",
        "v_proj",
    ]
    command("--model", "toy-open", "--data", str(rows), "--out", str(tmp_path / "run"), *flags)
    before, after = (load(name).model.state_dict() for name in ("toy-open", str(tmp_path / "run" / "model")))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    embeddings = {"model.embed_tokens.weight", "lm_head.weight"}
    assert len(changed - embeddings) == 8 and all("q_proj" in name or "v_proj" in name for name in changed - embeddings)
    assert embeddings <= changed and torch.equal(after["model.embed_tokens.weight"], after["lm_head.weight"])
    rows_changed = (before["lm_head.weight"] != after["lm_head.weight"]).any(1).nonzero().flatten().tolist()
    assert rows_changed == sorted(load("toy-open").markup.delimiters)


SCRIPT = ["-m", "ghosttrace", "sft", "--model", "toy-open", "--stage", "memento", *QUICK]
STEPS = ["--max_steps", "14", "--save_steps", "4", "--learning_rate", "1e-3", "--logging_steps", "1"]


def test_killed_and_resumed_run_equals_an_uninterrupted_run(rows: Path, tmp_path: Path) -> None:
    reference, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, *SCRIPT, "--data", str(rows), "--out", str(reference), *STEPS], check=True)
    child = subprocess.Popen([sys.executable, *SCRIPT, "--data", str(rows), "--out", str(killed), *STEPS])
    while child.poll() is None and not (killed / "checkpoints" / "checkpoint-8").exists():
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (killed / "model").exists()
    torn = killed / "checkpoints" / "checkpoint-12"  # as after a kill during writing
    torn.mkdir(exist_ok=True)
    (torn / "trainer_state.json").write_text("{")
    assert last_checkpoint(killed / "checkpoints") in {str(killed / "checkpoints" / f"checkpoint-{n}") for n in (4, 8)}
    command("--model", "toy-open", "--data", str(rows), "--resume", str(killed))
    assert losses(killed) == losses(reference)
    a, b = (load(str(folder / "model")).model.state_dict() for folder in (reference, killed))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_run_killed_after_its_last_step_only_finishes(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after the last checkpoint or after saving the model: no further step, and equal files."""
    flags = [*QUICK, "--max_steps", "4", "--save_steps", "2", "--learning_rate", "1e-3", "--logging_steps", "1"]
    run = tmp_path / "run"
    constant = [*flags, "--lr_scheduler_type", "constant"]
    command("--model", "toy-open", "--data", str(rows), "--out", str(run), *constant)
    before, weights = losses(run), load(str(run / "model")).model.state_dict()
    printed = capsys.readouterr().out.partition("Training steps: 4")[2]
    assert f"Written to {run}" in printed
    for removed in (("model", "samples.parquet", "summary.json"), ("samples.parquet", "summary.json")):
        for name in removed:
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        arguments = ("--resume", str(run))
        with pytest.raises(UserError, match="leave out --nonsense 7"):
            command(*arguments, "--nonsense", "7")
        command(*arguments)
        after = load(str(run / "model")).model.state_dict()
        assert losses(run) == before and all(torch.equal(weights[name], after[name]) for name in weights)
        assert json.loads((run / "summary.json").read_text())["steps"] == 4
    capsys.readouterr()
    command("--resume", str(run))
    assert capsys.readouterr().out.partition("Training steps: 4")[2] == printed
    checkpoint = load(str(run / "checkpoints" / "checkpoint-2"))  # checkpoints record the policy
    assert checkpoint.stages == (*load("toy-open").stages, "memento") and checkpoint.policy.keep_last_n_blocks == 0


def test_losses_by_kind_are_token_means_for_all_batch_sizes(rows: Path, tmp_path: Path) -> None:
    rows_by_run = []
    for size, steps in (("4", "1"), ("1", "4")):
        batch = ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", steps]
        out = tmp_path / size
        flags = [*QUICK, *batch, "--max_steps", "1", "--learning_rate", "0"]
        command("--model", "toy-open", "--data", str(rows), "--out", str(out), *flags)
        rows_by_run.append(pd.read_parquet(out / "samples.parquet").iloc[0])
    names = [name for name in rows_by_run[0].index if name.startswith("loss")]
    assert len(names) >= 4
    assert [rows_by_run[0][name] for name in names] == pytest.approx([rows_by_run[1][name] for name in names], rel=1e-4)


def test_run_with_nonfinite_loss_is_reported(rows: Path, tmp_path: Path) -> None:
    flags = [*QUICK, "--max_steps", "3", "--learning_rate", "1e30", "--max_grad_norm", "0"]
    command("--model", "toy-open", "--data", str(rows), "--out", str(tmp_path / "run"), *flags)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["valid"] is False


def test_error_after_a_checkpoint_keeps_the_run(tmp_path: Path) -> None:
    def refused() -> None:
        with new_run_folder(tmp_path / "run") as folder:
            (folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
            raise UserError("no more")

    with pytest.raises(UserError, match="finished samples are kept"):
        refused()
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-4").exists()


@pytest.mark.long
def test_two_processes_train_like_one(rows: Path, tmp_path: Path) -> None:
    flags = ["--max_steps", "4", "--learning_rate", "1e-3", "--use_cpu", "true", "--data", str(rows)]
    flags += ["--samples", "2"]  # only the first process writes and logs
    single, both = tmp_path / "alone", tmp_path / "both"
    command_line = [*SCRIPT, *flags, "--out", str(single)]
    subprocess.run([sys.executable, *command_line], check=True)
    two = [*SCRIPT, *flags, "--per_device_train_batch_size", "2", "--out", str(both)]
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(20_000 + os.getpid() % 20_000),
    ]
    subprocess.run([sys.executable, *launch, *two], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert losses(both) == pytest.approx(losses(single), rel=1e-4)
    a, b = (load(str(folder / "model")).model.state_dict() for folder in (single, both))
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-3)


TRACES = ("memento_blog_example_response.json", "memento_blog_example_code.json")


def single_pair_rows(path: Path) -> list[dict[str, str]]:
    """Return each block-memento pair of a trace as a separate row, with shortened texts."""
    trace = json.loads(path.read_text())
    texts = [part["text"] for part in trace["segments"] if part["type"] in ("block", "summary")]
    return [
        {
            "problem": trace["problem"][:200],
            "response": f"<think>\n<|block_start|>{block[:400]}<|block_end|>\n"
            f"<|summary_start|>{memento[:120]}<|summary_end|>\n</think>\nThe answer is {trace['answer'][:20]}.",
        }
        for block, memento in zip(texts[::2], texts[1::2], strict=False)
    ]


@pytest.mark.long
@requires_data(*(f"traces/{name}" for name in TRACES), "tokenizers/qwen3")
def test_hundred_steps_on_real_traces(tmp_path: Path) -> None:
    """Rows in the format of OpenMementos, the real tokenizer with added delimiters, and a small Qwen3."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers" / "qwen3")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    cli.app(
        ["init-tokens", str(tmp_path / "base"), str(tmp_path / "start"), "--keep-delimiters"], standalone_mode=False
    )
    data = [row for name in TRACES for row in single_pair_rows(DATA / "traces" / name)]
    pd.DataFrame(data).to_parquet(tmp_path / "rows.parquet", index=False)
    flags = ["--max_length", "320", "--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1"]
    flags += ["--max_steps", "100", "--learning_rate", "3e-3", "--bf16", "false", "--report_to", "tensorboard"]
    flags += ["--save_strategy", "no", "--disable_tqdm", "true", "--gradient_checkpointing", "false"]
    out = tmp_path / "run"
    command("--model", str(tmp_path / "start"), "--data", str(tmp_path / "rows.parquet"), "--out", str(out), *flags)
    log = losses(out)
    assert len(log) == 100 and np.mean(log[-5:]) < 0.8 * np.mean(log[:5])
    report = json.loads((out / "examples.json").read_text())
    assert report["used"] == len(data) > 8 and report["compression"] > 1 and not report["dropped"]
    assert list((out / "checkpoints").rglob("events.out.tfevents.*"))
    trained = load(str(out / "model"))
    assert trained.policy == Policy(False) and trained.markup.block_start == 151_669


def test_bundled_models_are_not_modified() -> None:
    """Training writes to run folders and never to the package."""
    assert not any(Path(resolve_pretrained_path("toy-open")).glob("checkpoint*"))
