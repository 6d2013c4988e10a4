"""`ghosttrace sft`: the three stages, what it refuses, a run that is killed, real traces, adapters, two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from families import FAMILIES
from paths import DATA, needs
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from ghosttrace import cli
from ghosttrace.bench.ledger import Ledger
from ghosttrace.checkpoint import load, source
from ghosttrace.errors import UserError
from ghosttrace.expiry import Policy
from ghosttrace.runs import run_folder
from ghosttrace.train.delimiters import RELATED, add_delimiters
from ghosttrace.train.recipe import Recipe, arguments
from ghosttrace.train.sft import last_checkpoint, sft

QUICK = ["--max_length", "256", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"]
QUICK += ["--bf16", "false", "--gradient_checkpointing", "false", "--disable_tqdm", "true", "--report_to", "none"]


def ledger_rows(path: Path, n: int = 48, seed: int = 0) -> Path:
    """Rows in OpenMementos' format."""
    rng = np.random.default_rng(seed)
    ledgers = [Ledger.sample(rng, int(level)) for level in rng.integers(0, 4, n)]
    rows = [{"problem": one.prompt, "response": "".join(one.response()[:-1])} for one in ledgers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ledger_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


def command(*arguments: str) -> None:
    cli.app(["sft", *arguments], standalone_mode=False)


def losses(folder: Path) -> list[float]:
    return pd.read_parquet(folder / "samples.parquet")["loss"].tolist()


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    """`toy-open`'s geometry and tokenizer with random weights, no policy recorded."""
    torch.manual_seed(0)
    checkpoint = load("toy-open")
    config = checkpoint.model.config.__class__(**checkpoint.model.config.to_dict())
    config.ghosttrace = {}
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "blank")
    checkpoint.tokenizer.save_pretrained(tmp_path / "blank")
    return tmp_path / "blank"


def test_stages_follow_each_other_and_the_policy_goes_along(rows: Path, blank: Path, tmp_path: Path) -> None:
    model, told = str(blank), ["--mask-delimiters"]
    for number, stage in enumerate(("full", "memento", "sealed")):
        out = tmp_path / stage
        flags = [*QUICK, "--max_steps", "6", "--learning_rate", "1e-3", "--packing", str(number == 1)]
        command("--model", model, "--data", str(rows), "--stage", stage, *told, "--out", str(out), *flags)
        model, told = str(out / "model"), []
        found = load(model)
        assert found.policy == Policy(True, keep_last_n_blocks=-1 if stage == "full" else 0)
        assert found.sealed == (stage == "sealed") and len(found.stages) == number + 1
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


def test_packing_changes_nothing_but_the_rows(rows: Path, tmp_path: Path) -> None:
    """Two traces a row, one row a step, against two rows of one trace: the same tokens, the same losses."""
    flags = [*QUICK, "--max_steps", "1", "--learning_rate", "0", "--gradient_accumulation_steps", "12"]
    found = []
    for pack in ("true", "false"):
        out = tmp_path / pack
        batch = ["--per_device_train_batch_size", "2" if pack == "true" else "4", "--packing", pack]
        command("--model", "toy-open", "--data", str(rows), "--out", str(out), *flags, *batch)
        found.append(pd.read_parquet(out / "samples.parquet").iloc[0])
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-3)
    assert found[0]["loss_block"] == pytest.approx(found[1]["loss_block"], rel=1e-2)


def test_losses_by_kind_add_up(rows: Path, tmp_path: Path) -> None:
    command("--model", "toy-open", "--data", str(rows), "--out", str(tmp_path / "run"), *QUICK, "--max_steps", "2")
    log = pd.read_parquet(tmp_path / "run" / "samples.parquet").iloc[0]
    share = {"text": 2, "block": 4 * 17, "memento": 4 * 3, "delimiter": 16, "answer": 5}  # `<think>`; `</think>`
    share = share | {"text": 1}
    total = sum(share.values())
    mean = sum(log[f"loss_{name}"] * count for name, count in share.items()) / total
    assert log["loss"] == pytest.approx(mean, rel=1e-4)


def test_samples_and_held_out_rows(rows: Path, tmp_path: Path) -> None:
    """A trained model writes valid format; one with its delimiters' embeddings gone does not."""
    held_out, found = ledger_rows(tmp_path / "held-out.jsonl", 8, seed=1), []
    broken = load("toy-open")
    broken.model.get_input_embeddings().weight.data[list(broken.markup.delimiters)] = 0
    broken.model.save_pretrained(tmp_path / "broken")
    broken.tokenizer.save_pretrained(tmp_path / "broken")
    for model in ("toy-open", str(tmp_path / "broken")):
        out = tmp_path / "runs" / Path(model).name
        flags = [*QUICK, "--max_steps", "2", "--learning_rate", "1e-9", "--eval_strategy", "steps", "--eval_steps", "1"]
        data = ["--data", str(rows), "--eval-data", str(held_out), "--samples", "6"]
        command("--model", model, *data, "--out", str(out), *flags)
        found.append(json.loads((out / "summary.json").read_text())["sampled"])
        state = json.loads((out / "checkpoints" / "checkpoint-2" / "trainer_state.json").read_text())
        assert [row["step"] for row in state["log_history"] if "eval_loss_memento" in row] == [1, 2]
    good, bad = found
    assert len(good) == 3 and good[-1]["sampled_valid"] >= 0.8 and good[-1]["sampled_compression"] > 1.5
    assert bad[-1]["sampled_valid"] <= 0.2


def test_checkpointing_changes_no_loss(rows: Path, tmp_path: Path) -> None:
    for value in ("true", "false"):
        flags = [*QUICK, "--max_steps", "3", "--gradient_checkpointing", value, "--learning_rate", "1e-3"]
        command("--model", "toy-mixed", "--data", str(rows), "--out", str(tmp_path / value), *flags)
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), rel=1e-5)


def test_an_adapter_is_merged_into_a_model_that_loads(rows: Path, tmp_path: Path) -> None:
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
    assert len(changed) == 8 and all("q_proj" in name or "v_proj" in name for name in changed)


SCRIPT = ["-m", "ghosttrace.cli", "sft", "--model", "toy-open", "--stage", "memento", *QUICK]
STEPS = ["--max_steps", "14", "--save_steps", "4", "--learning_rate", "1e-3", "--logging_steps", "1"]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(rows: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, *SCRIPT, "--data", str(rows), "--out", str(whole), *STEPS], check=True)
    child = subprocess.Popen([sys.executable, *SCRIPT, "--data", str(rows), "--out", str(killed), *STEPS])
    while child.poll() is None and not (killed / "checkpoints" / "checkpoint-8").exists():
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (killed / "model").exists()
    torn = killed / "checkpoints" / "checkpoint-12"  # as a kill in the midst of writing leaves it
    torn.mkdir(exist_ok=True)
    (torn / "trainer_state.json").write_text("{")
    assert last_checkpoint(killed / "checkpoints") in {str(killed / "checkpoints" / f"checkpoint-{n}") for n in (4, 8)}
    command("--model", "toy-open", "--data", str(rows), "--resume", str(killed))
    assert losses(killed) == losses(whole)
    a, b = (load(str(folder / "model")).model.state_dict() for folder in (whole, killed))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_refusal_after_a_checkpoint_loses_nothing(tmp_path: Path) -> None:
    def refused() -> None:
        with run_folder(tmp_path / "run", "sft", "toy-open") as folder:
            (folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
            raise UserError("no more")

    with pytest.raises(UserError, match="what is done is kept"):
        refused()
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-4").exists()


def test_two_processes_train_as_one_does(rows: Path, tmp_path: Path) -> None:
    flags = ["--max_steps", "4", "--learning_rate", "1e-3", "--use_cpu", "true", "--data", str(rows)]
    alone, both = tmp_path / "alone", tmp_path / "both"
    one = [*SCRIPT, *flags, "--out", str(alone)]
    subprocess.run([sys.executable, *one], check=True)
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
    assert losses(both) == pytest.approx(losses(alone), rel=1e-4)
    a, b = (load(str(folder / "model")).model.state_dict() for folder in (alone, both))
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-3)


TRACES = ("memento_blog_example_response.json", "memento_blog_example_code.json")


def pairs_of(path: Path) -> list[dict[str, str]]:
    """Each block of a trace with its memento as a row of its own, the texts shortened."""
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


@needs(*(f"traces/{name}" for name in TRACES), "tokenizers/qwen3")
def test_a_hundred_steps_on_real_traces(tmp_path: Path) -> None:
    """Rows as OpenMementos has them, the real tokenizer, delimiters added, a small Qwen3."""
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
    data = [row for name in TRACES for row in pairs_of(DATA / "traces" / name)]
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--stage", "half"], "--stage is one of full, memento, sealed"),
        (["--sealed-share", "0.3", "--stage", "full"], "belongs to --stage memento"),
        (["--kernel", "magic"], "--kernel is stretches"),
        (["--bad-rows", "eat"], "--bad-rows is skip or refuse"),
        (["--kernel", "flex"], "FlexAttention has no backward pass on a CPU"),
        (["--learning_speed", "3"], "the trainer does not take"),
        (["--learning_rate", "fast"], "the trainer does not take"),
        (["--max_length", "4096"], "takes at most 1024 positions"),
        (["--keep-delimiters"], "was trained with mask_delimiters = True, and this stage is told False"),
        (["--keep-last-n-blocks", "2"], "was trained with keep_last_n_blocks = 0"),
        (["--map-delimiters", "block_start=<|nothing|>"], "ghosttrace init-tokens"),
        (["--eval_strategy", "steps"], "give --eval-data"),
        (["--data", "nothing.jsonl"], "no file nothing.jsonl"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(options: list[str], said: str, rows: Path, tmp_path: Path) -> None:
    data = [] if "--data" in options else ["--data", str(rows)]
    with pytest.raises(UserError, match=said) as caught:
        command("--model", "toy-open", *data, "--out", str(tmp_path / "run"), *QUICK, *options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_policy_must_be_told(rows: Path, blank: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --mask-delimiters"):
        command("--model", str(blank), "--data", str(rows), "--out", str(tmp_path / "run"), *QUICK)


def test_rows_that_cannot_be_used_are_named(rows: Path, tmp_path: Path) -> None:
    lines = rows.read_text().splitlines()
    good = json.loads(lines[0])
    cut = good | {"id": "torn", "response": good["response"].replace("<|summary_end|>", "", 1)}
    open_ended = good | {"response": good["response"].rpartition("<|summary_start|>")[0]}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*lines[:8], json.dumps(cut), json.dumps(open_ended)]))
    out = tmp_path / "run"
    base = ["--model", "toy-open", "--data", str(path), *QUICK, "--max_steps", "1"]
    command(*base, "--out", str(out))
    report = json.loads((out / "examples.json").read_text())
    assert (report["rows"], report["used"], report["dropped"]) == (10, 8, {"unbalanced delimiters": 2})
    assert report["named"][0]["row"].endswith("row torn")
    assert report["named"][0]["reason"] == "unbalanced delimiters: block_start where summary_end is due"
    assert report["named"][1]["reason"].endswith("it ends before summary_start")
    with pytest.raises(UserError, match="row torn: unbalanced delimiters"):
        command(*base, "--out", str(tmp_path / "other"), "--bad-rows", "refuse")


def test_rows_in_tokens_are_taken_as_they_are_and_their_expiry_is_checked(tmp_path: Path) -> None:
    tokenizer, markup = load("toy-open").tokenizer, load("toy-open").markup
    one = Ledger.sample(np.random.default_rng(0), 2)
    ids = load("toy-open").prompt_ids(one.prompt) + tokenizer.convert_tokens_to_ids(one.response())
    labels = [-100] * 40 + ids[40:]
    from ghosttrace.expiry import expiry

    times = expiry(ids, markup, Policy(True)).tolist()
    path, base = tmp_path / "rows.jsonl", ["--model", "toy-open", *QUICK, "--max_steps", "1"]
    for number, (changed, said) in enumerate(
        [
            ({}, None),
            ({"expiry": times}, None),
            ({"expiry": [9, *times[1:]]}, "disagrees with its ids at token 0"),
            ({"labels": labels[1:]}, "equally long"),
            ({"labels": [*labels[1:], 5]}, "a label is the token of its own place"),
        ]
    ):
        path.write_text(json.dumps({"input_ids": ids, "labels": labels} | changed))
        run = ["--data", str(path), "--out", str(tmp_path / str(number))]
        if said is None:
            command(*base, *run)
            assert json.loads((tmp_path / str(number) / "examples.json").read_text())["learned"] == len(ids) - 40
        else:
            with pytest.raises(UserError, match=said):
                command(*base, *run)


def test_the_paper_is_the_default() -> None:
    args, _ = arguments(["--bf16", "false"])
    assert (args.learning_rate, args.max_length, args.seed) == (8e-5, 32_768, 42)
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.9, 0.999, 0.0, 1.0)
    assert args.gradient_accumulation_steps * args.per_device_train_batch_size == 512
    assert str(args.lr_scheduler_type) in ("cosine", "SchedulerType.COSINE") and args.num_train_epochs == 5


def test_options_come_from_yaml_too(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text("learning_rate: 0.001\nbf16: false\nuse_peft: true\n")
    args, model_args = arguments(["--config", str(tmp_path / "sft.yaml"), "--learning_rate", "0.002"])
    assert args.learning_rate == 0.002 and model_args.use_peft


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("room", [0, 40])
def test_new_tokens_begin_as_the_mean_of_related_words(tied: bool, room: int) -> None:
    """In both tables where they are not tied; nothing else moves; the table grows only where it must."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", *sorted({word for related in RELATED.values() for word in related}), "A"]
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    config = FAMILIES["qwen3"]()
    config.vocab_size, config.tie_word_embeddings = len(words) + room, tied
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    before = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    added = add_delimiters(model, tokenizer, names={"block_end": "A"})
    assert list(added) == ["block_start", "summary_start", "summary_end"]
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (tables[0] is tables[1]) == tied
    for old, new in zip(before, tables, strict=True):
        assert len(new) == max(len(words) + room, len(words) + 3)
        assert torch.equal(old[: len(words)], new[: len(words)])
        for name, number in added.items():
            gap = new[number] - old[[words.index(word) for word in RELATED[name]]].mean(0)
            assert 0.002 < gap.std() < 0.03
    with pytest.raises(UserError, match="one spelling"):
        add_delimiters(model, tokenizer, names={"block_end": "<|block_start|>"})


def test_init_tokens_writes_a_model_that_knows_its_policy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds something already"):
        cli.app(["init-tokens", "toy-open", str(Path(__file__).parent)], standalone_mode=False)
    told = ["--map-delimiters", "block_end=*", "--mask-delimiters"]
    cli.app(["init-tokens", "toy-open", str(tmp_path / "start"), *told], standalone_mode=False)
    found = load(str(tmp_path / "start"))
    assert found.policy == Policy(True, keep_last_n_blocks=-1)
    assert found.markup.block_end == found.tokenizer.get_vocab()["*"]


def test_the_bundled_source_is_left_alone() -> None:
    """Training writes run folders, never the package."""
    assert not any(Path(source("toy-open")).glob("checkpoint*"))
