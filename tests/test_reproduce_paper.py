"""The paper's chain: its plan by hand, its data, its steps after interruptions and failures, and its page."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.paths import SMOLLM2, requires_smollm2
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from experiments import reproduce_page, reproduce_paper, reproduce_plan, reproduce_steps
from experiments.reproduce_data import COLUMNS, sample_rows, story_rows, sums, write_jsonl
from experiments.reproduce_plan import GPUS, ModelSize, decoding_rows, model_config, plan_chain
from experiments.reproduce_scale import ARMS, PAPER, REHEARSAL
from experiments.reproduce_steps import Chain, Step
from ghosttrace.bench import load_bench
from ghosttrace.cli import main as cli
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy

QWEN = "Qwen/Qwen3-8B"
HEADINGS = ["Training", "Restart ablation on AIME24, pass@1 in %", "Passcodes, accuracy of a digit in %"]


def chain(out: Path, model: str = QWEN, data: str | None = "rows.jsonl", gpus: int = 8) -> Chain:
    return Chain(model, out, data, mask_delimiters=False, gpus=gpus, batch_size=None)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the script prints about invalid input."""
    with pytest.raises(SystemExit) as stopped:
        reproduce_paper.main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_size_of_qwen3_8b() -> None:
    """4,096 wide: 32 heads and 8 key-value heads of 128, and an MLP of 12,288; 36 layers; vocabulary of 151,936."""
    size = ModelSize.from_config(model_config(QWEN))
    layer = 4096 * (4096 + 2 * 1024 + 4096 + 3 * 12_288)
    assert size.matrix_parameters == 36 * layer + 4096 * 151_936  # the output is a matrix, the embedding table none
    norms = 36 * (2 * 4096 + 2 * 128) + 4096
    assert size.parameters == 36 * layer + 2 * 4096 * 151_936 + norms
    assert size.kv_bytes == 144 * 1024 and size.attention_width == 36 * 32 * 128
    assert size.forward_flops(10, 55) == 20 * size.matrix_parameters + 4 * 55 * size.attention_width


def test_plan_of_training_is_operations_over_rate() -> None:
    size, gpu = ModelSize.from_config(model_config(QWEN)), GPUS["h100"]
    full, memento, *_ = plan_chain(QWEN, PAPER, False, gpu, 8)
    tokens = 12_950
    assert full.flops == 155_000 * 4 * size.forward_flops(tokens, tokens * (tokens + 1) / 2)
    assert 155_000 * 4 * size.forward_flops(tokens, 0) < memento.flops < full.flops
    assert full.hours == pytest.approx(full.flops / (8 * 989e12 * 0.4) / 3600)
    assert full.gpu_hours == 8 * full.hours
    assert full.memory > 16 * size.parameters / 8 and full.fits
    assert not plan_chain(QWEN, PAPER, False, gpu, 1)[0].fits  # 131 GB of state on one GPU of 80


def test_plan_of_decoding_reads_weights_every_step() -> None:
    size, gpu = ModelSize.from_config(model_config(QWEN)), GPUS["h200"]
    steps = {step.step: step for step in plan_chain(QWEN, PAPER, False, gpu, 8)}
    rows = decoding_rows(size, gpu.memory, ("memento", *ARMS), Policy(False), PAPER.max_new_tokens)
    batches = -(-30 * 64 // rows)
    weights = 5 * batches * 32_000 * 2 * size.parameters
    assert weights < steps["ablation"].bytes_read < 3 * weights
    assert steps["ablation"].memory < gpu.memory
    assert steps["traces"].bytes_read < steps["ablation"].bytes_read / 100
    assert [step.gpus for step in steps.values()] == [8, 8, 1, 1, 1]


@pytest.mark.parametrize("memory, rows", [(10e9, 1), (80e9, 29), (141e9, 57), (1e15, 128)])
def test_rows_that_are_decoded_together_fit(memory: float, rows: int) -> None:
    size = ModelSize.from_config(model_config(QWEN))
    assert decoding_rows(size, memory, ("memento", *ARMS), Policy(False), PAPER.max_new_tokens) == rows


def test_recorded_plan_is_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = pd.read_parquet(reproduce_plan.RESULTS)
    monkeypatch.setattr(reproduce_plan, "RESULTS", tmp_path / "plan.parquet")
    reproduce_plan.main()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "plan.parquet"), recorded)


def test_plan_is_printed_without_the_hub(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    reproduce_paper.main(["--plan", "--gpu", "h200", "--gpus", "4", "--out", str(tmp_path / "new")])
    output = capsys.readouterr().out
    assert "Qwen/Qwen3-8B on 4 x H200 SXM" in output and "GPU-hours" in output
    assert "--num_processes 4 -m ghosttrace sft" in output and "--gradient_accumulation_steps 128" in output
    assert f"--bench aime24 --arms {','.join(ARMS)} --repetitions 64 --max-new-tokens 32000" in output
    assert "--layers 3,35 --kv kv --joint" in output and "Power with 64 repetitions" in output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "needs a GPU: give --plan to see what it takes, or --rehearse"),
        (["--gpus", "64"], "GPUs, not 64: give a smaller --gpus"),
        (["--plan", "--gpus", "3"], "must divide the paper's batch of 512 rows, and 3 does not"),
        (["--plan", "--gpus", "0"], "needs a GPU"),
        (["--plan", "--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["--rehearse", "--data", "rows.jsonl"], "leave out --data"),
        (["--plan", "--model", "smollm2-135n"], "did you mean smollm2-135m?"),
        (["--plan", "--rehearse"], "not allowed with"),
    ],
)
def test_bad_options_get_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert message in refused(arguments, capsys).strip().splitlines()[-1]


def test_folder_of_another_chain_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce_paper.claim_folder(chain(tmp_path / "out"))
    reproduce_paper.claim_folder(chain(tmp_path / "out"))
    with pytest.raises(UserError, match="was begun with gpus 8, not 4: give --out a new folder"):
        reproduce_paper.claim_folder(chain(tmp_path / "out", gpus=4))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "file").touch()
    assert "not an empty folder" in refused(
        ["--rehearse", "--model", "toy-open", "--out", str(tmp_path / "notes")], capsys
    )


def test_sample_is_random_and_without_replacement(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, [{"problem": str(i), "response": "r", "domain": "math", "sentences": ["s"]} for i in range(60)])
    drawn = [[int(row["problem"]) for row in sample_rows(str(file), 20, seed)] for seed in range(40)]
    assert all(len(set(rows)) == 20 for rows in drawn)
    assert sample_rows(str(file), 20, 3) == sample_rows(str(file), 20, 3)
    assert set(sample_rows(str(file), 20, 3)[0]) == set(COLUMNS)
    counts = pd.Series([number for rows in drawn for number in rows]).value_counts()
    assert counts.reindex(range(60)).between(4, 24).all()  # 40 x 20 / 60 = 13.3 expected
    assert {row["problem"] for row in sample_rows(str(file), 100, 0)} == {str(i) for i in range(60)}


def test_rows_without_a_response_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"problem": "1", "response": "r"}, {"problem": "2"}])
    with pytest.raises(UserError, match="row 1 has no problem and response"):
        sample_rows(str(tmp_path / "rows.jsonl"), 5, 0)


def test_generated_rows_have_the_format_of_openmementos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "rows.jsonl", story_rows(12, 0))
    cli.app(["data", "check", str(tmp_path / "rows.jsonl")], standalone_mode=False)  # exits with 1 if a row is wrong
    assert set(story_rows(1, 0)[0]) == set(COLUMNS)
    write_jsonl(tmp_path / "aime24.jsonl", sums(3, 0))
    (bench,) = load_bench("aime24", 3, file=tmp_path / "aime24.jsonl")
    assert [bench.grade(problem, f"\\boxed{{{problem.answer}}}").correct for problem in bench.problems] == [True] * 3


def test_interrupted_training_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(reproduce_steps, "_call", lambda step, command: called.append([step, *command]))
    step = reproduce_steps.steps(chain(tmp_path))[2]
    step.run()
    (tmp_path / "sft-full").mkdir()
    (tmp_path / "sft-full" / "run.json").touch()
    step.run()
    assert [name for name, *_ in called] == ["sft-full", "sft-full"]
    first, second = (" ".join(command) for _, *command in called)
    assert "--stage full" in first and "--learning_rate 8e-05 --num_train_epochs 5" in first and "--resume" not in first
    assert second.endswith(f"--num_processes 8 -m ghosttrace sft --resume {tmp_path / 'sft-full'}")


@pytest.mark.parametrize(
    "code, message, expected",
    [
        ("print('no such rows', file=sys.stderr); sys.exit(2)", "no such rows", 2),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9", 1),
    ],
)
def test_failed_step_stops_the_chain(
    code: str,
    message: str,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With the command's own message and exit code."""
    done: list[str] = []
    command = (sys.executable, "-c", f"import sys; {code}")
    planned = [
        Step("data", "first", lambda: False, lambda: done.append("data")),
        Step("sft-full", "second", lambda: False, lambda: reproduce_steps._call("sft-full", command)),
        Step("ablation", "third", lambda: False, lambda: done.append("ablation")),
    ]
    monkeypatch.setattr(reproduce_paper, "steps", lambda _: planned)
    with pytest.raises(SystemExit) as stopped:
        reproduce_paper.main(["--rehearse", "--model", "toy-open", "--out", str(tmp_path / "out")])
    assert stopped.value.code == expected and done == ["data"]
    error = capfd.readouterr().err
    assert message in error and "the step sft-full stopped with exit code" in error


def test_page_has_the_papers_numbers(tmp_path: Path) -> None:
    recorded = pd.read_parquet(Path(reproduce_plan.RESULTS).parent / "passcode.parquet")
    table = reproduce_page.probe_table(recorded[recorded["model"] == "random-qwen3"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[2:5] for row in rows if row[2]] == [
        ["10.8", "10.7", "Table 4"],
        *[[a, b, "Table 4"] for a, b in (("51.6", "53.8"), ("64.9", "68.7"), ("65.2", "71.2"))],
        *[[a, b, "Table 4"] for a, b in (("10.8", "12.8"), ("26.5", "22.4"), ("26.7", "23.0"))],
    ]
    assert rows[4][5] == "32.8 [29.9, 35.7]" and rows[4][7].startswith("8.4 [")  # hop 0, layer 3; and sealed
    assert rows[5][6] == "31.3 [28.4, 34.3]"  # MLP
    columns = ("accuracy", "accuracy_low", "accuracy_high", "effect", "effect_low", "effect_high")
    values = {arm: (0.6, 0.5, 0.7, drop, drop - 0.1, drop + 0.1) for arm, drop in (("memento", 0.0), ("restart", -0.2))}
    results = pd.DataFrame(
        [{"arm": arm, "blocks": 7.5} | dict(zip(columns, row, strict=True)) for arm, row in values.items()]
    )
    memento, restart = reproduce_page.ablation_table(results).splitlines()[2:]
    assert memento == "| `memento` | 66.1 | §6.2.1, 64 repetitions | 60.0 [50.0, 70.0] |  |  | 7.5 |"
    assert "| 50.8 | §6.2.1, 8 repetitions | 60.0 [50.0, 70.0] | -15.3 | -20.0 [-30.0, -10.0] |" in restart


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of six layers with SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def interrupted(original: Any) -> Any:
    """Return a `show_progress` that stops the ablation after its first arm."""

    @contextmanager
    def show(console: Any, command: str, folder: Path) -> Iterator[Any]:
        def stop(step: str, done: int, total: int) -> None:
            if done > total / 5:
                raise KeyboardInterrupt

        with original(console, command, folder):
            yield stop

    return show


@pytest.mark.slow
@requires_smollm2
def test_rehearsal_goes_on_where_it_stopped(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every step on a random model; the rehearsal on SmolLM2 is the test after this one."""
    arguments = ["--rehearse", "--model", str(small_model), "--out", str(tmp_path)]
    with monkeypatch.context() as patched:
        patched.setattr(reproduce_steps, "show_progress", interrupted(reproduce_steps.show_progress))
        with pytest.raises(KeyboardInterrupt):
            reproduce_paper.main(arguments)
    log = (tmp_path / "ablation" / "samples.jsonl").read_text().splitlines()
    samples = (len(ARMS) + 1) * REHEARSAL.problems * REHEARSAL.repetitions
    assert 0 < len(log) < samples and not (tmp_path / "page.md").exists()
    trained = (tmp_path / "sft-memento" / "model" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", lambda *_: pytest.fail("a finished step was repeated"))
        reproduce_paper.main(arguments)
    assert capsys.readouterr().out.count("finished before") == 4
    assert (tmp_path / "sft-memento" / "model" / "model.safetensors").stat().st_mtime_ns == trained
    table = pd.read_parquet(tmp_path / "ablation" / "samples.parquet")
    kept = {(row["arm"], row["problem"], row["repetition"]): row["response_ids"] for row in map(json.loads, log)}
    assert len(table) == samples and (table["blocks"] == 3).all()
    for row in table.to_dict("records"):
        key = (row["arm"], row["problem"], row["repetition"])
        assert key not in kept or list(row["response_ids"]) == kept[key]

    check_page(tmp_path)
    recorded = json.loads((tmp_path / "sft-memento" / "model" / "config.json").read_text())["ghosttrace"]
    assert recorded["stages"] == ["full", "memento"] and recorded["policy"]["keep_last_n_blocks"] == 0
    reproduce_paper.main(arguments)
    assert capsys.readouterr().out.count("finished before") == 7
    assert "was begun with model" in refused(["--rehearse", "--model", "toy-open", "--out", str(tmp_path)], capsys)


def check_page(folder: Path) -> None:
    """Check that the page has all sections, and says what a rehearsal is worth."""
    page = (folder / "page.md").read_text()
    assert re.findall(r"^## (.+)$", page, flags=re.MULTILINE)[:3] == HEADINGS
    assert "its figures mean nothing" in page and "66.1" in page and "26.5" in page
    assert page.count("| restart") + page.count("| `restart`") == 1 and "Table 4" in page


@pytest.mark.long
@requires_smollm2
def test_rehearsal_on_smollm2(tmp_path: Path) -> None:
    reproduce_paper.main(["--rehearse", "--out", str(tmp_path)])
    check_page(tmp_path)
