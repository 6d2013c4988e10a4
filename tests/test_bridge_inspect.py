"""The Inspect bridge: texts and marks equal those of `ablate`, logs say what happened, bad input gets one sentence.

Inspect is not among the development tools: `pip install -e '.[inspect]' pytest` in an environment of its own is enough.
"""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import ghosttrace as gt
from ghosttrace.ablation.arms import Memento, Restart
from ghosttrace.errors import UserError

pytest.importorskip("inspect_ai", reason="the extra `inspect` is not installed")
import inspect_ai
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import ChatMessageUser, GenerateConfig, ModelName, ModelOutput, get_model
from inspect_ai.scorer import Target
from inspect_ai.solver import TaskState

from ghosttrace.bridges.inspect_ai import registry

ENTRY_POINT = "ghosttrace.bridges.inspect_ai.registry"


def evaluate(folder: Path, model: str | None = "ghosttrace/toy-mixed", /, **task: Any) -> EvalLog:
    """Evaluate the task and return its log, read from the file that Inspect wrote."""
    more = {name: task.pop(name) for name in ("model_args", "temperature", "epochs", "max_tokens") if name in task}
    (log,) = inspect_ai.eval(
        "ghosttrace/bench", model, task_args=task, log_dir=str(folder), log_format="eval", display="none", **more
    )
    return read_eval_log(log.location)


def check_equal(log: EvalLog, run: gt.AblationResult, arm: str) -> None:
    """Check that texts, marks and answers are those of an ablation, and that accuracy and standard error follow."""
    assert log.status == "success" and log.samples is not None and log.results is not None
    frame = run.samples[run.samples["arm"] == arm].astype(object)
    table = frame.where(frame.notna(), None).to_dict("records")
    rows = {(row["problem"], row["repetition"]): row for row in table}
    assert len(log.samples) == len(rows) > 0
    eos = gt.load("toy-mixed").tokenizer.eos_token
    by_problem: dict[str, list[float]] = {}
    for sample in log.samples:
        row = rows[str(sample.id), sample.epoch - 1]
        ended = row["finish"] == "eos"
        text = row["response"].removesuffix(eos) if ended else row["response"]
        assert sample.output.completion == text and sample.input == row["prompt"]
        assert sample.output.stop_reason == ("stop" if ended else "max_tokens")
        assert sample.scores is not None and sample.output.usage is not None
        score = sample.scores["bench_grader"]
        assert score.value == ("C" if row["correct"] else "I") and score.answer == row["extracted"]
        assert score.metadata is not None and score.metadata["rule"] == row["rule"]
        assert (score.metadata["arm"], score.metadata["blocks"]) == (arm, row["blocks"])
        assert score.metadata["peak_kv_tokens"] == row["peak_kv_tokens"]
        assert score.metadata.get("donor_answer") == row["donor_answer"]
        assert sample.output.usage.output_tokens == row["response_tokens"]
        check_erased(score.metadata["tokens_erased"], row, arm)
        by_problem.setdefault(str(sample.id), []).append(float(row["correct"]))
    means = np.array([np.mean(marks) for marks in by_problem.values()])
    metrics = log.results.scores[0].metrics
    assert metrics["accuracy"].value == pytest.approx(means.mean())
    assert metrics["stderr"].value == pytest.approx(means.std(ddof=1) / np.sqrt(len(means)))


def check_erased(erased: int, row: Any, arm: str) -> None:
    """Check the number of erased tokens against the expiry of every token of prompt and response."""
    checkpoint = gt.load("toy-mixed")
    tokens = [*row["prompt_ids"], *row["response_ids"]]
    expiry = gt.expiry(tokens, checkpoint.markup, checkpoint.policy)
    last = len(tokens) - 2  # the last token that is processed
    assert erased == (0 if arm == "full" else int((expiry[: last + 1] <= last).sum()))


@pytest.mark.parametrize("arm", ["memento", "full", "restart", "swap", "noise"])
def test_greedy_samples_equal_those_of_an_ablation(arm: str, tmp_path: Path) -> None:
    run = gt.ablate("toy-mixed", "ledger-h1", [arm], limit=7, batch_size=3, seed=2)
    log = evaluate(tmp_path, bench="ledger-h1", arm=arm, limit=7, batch_size=3, seed=2)
    check_equal(log, run, arm)
    assert log.eval.task == "ghosttrace/bench" and log.eval.model == "ghosttrace/toy-mixed"
    assert log.eval.metadata is not None
    assert log.eval.metadata["problems_sha256"] == run.configuration["benches"]["ledger-h1"]["sha256"]
    assert log.location.endswith(".eval") and Path(log.location).exists()


def test_sampled_repetitions_equal_those_of_an_ablation(tmp_path: Path) -> None:
    sampling = {"temperature": 1.5, "max_new_tokens": 60}
    run = gt.ablate("toy-mixed", "ledger-h2", ["restart"], limit=4, repetitions=3, sampling=sampling, batch_size=5)
    assert run.samples.groupby(["arm", "problem"])["response"].nunique().max() > 1
    options = {"temperature": 1.5, "max_tokens": 60, "repetitions": 3, "batch_size": 5}
    check_equal(evaluate(tmp_path, bench="ledger-h2", arm="restart", limit=4, **options), run, "restart")


def test_arm_and_law_may_be_those_of_the_model(tmp_path: Path) -> None:
    run = gt.ablate("toy-mixed", "ledger-h1", ["noise"], limit=3, noise=0.2)
    log = evaluate(tmp_path, bench="ledger-h1", limit=3, model_args={"arm": "noise", "noise": 0.2})
    check_equal(log, run, "noise")
    windowed = gt.ablate("toy-mixed", "ledger-h1", ["restart"], limit=2, law="window:60,20")
    given = {"law": ["window:60", 20]}  # as Inspect reads -M law=window:60,20
    log = evaluate(tmp_path, bench="ledger-h1", arm="restart", limit=2, model_args=given)
    rows = windowed.samples[windowed.samples["arm"] == "restart"]
    assert log.samples is not None
    texts = [text.removesuffix(gt.load("toy-mixed").tokenizer.eos_token) for text in rows["response"]]
    assert [sample.output.completion for sample in log.samples] == texts
    assert all(sample.scores["bench_grader"].metadata["tokens_erased"] > 0 for sample in log.samples)  # type: ignore[index]


def test_model_may_be_an_argument_of_the_task(tmp_path: Path) -> None:
    log = evaluate(tmp_path, None, bench="ledger-h0", limit=2, model="toy-open")
    assert log.status == "success" and log.eval.model == "ghosttrace/toy-open"
    (score,) = log.results.scores  # type: ignore[union-attr]
    assert score.metrics["accuracy"].value == 1.0 and log.stats.model_usage["ghosttrace/toy-open"].output_tokens > 0


def test_log_can_be_scored_again(tmp_path: Path) -> None:
    log = evaluate(tmp_path, bench="ledger-h0", limit=4)
    again = inspect_ai.score(log, registry.bench_grader("ledger-h0", 4), action="overwrite", display="none")
    assert log.samples and again.samples and again.results and log.results
    assert [sample.scores for sample in again.samples] == [sample.scores for sample in log.samples]
    assert again.results.scores[0].metrics["accuracy"].value == log.results.scores[0].metrics["accuracy"].value == 1.0


def test_variants_of_a_problem_are_one_cluster(tmp_path: Path) -> None:
    row = '{{"id": "{0}", "problem": "x{0}", "answer": "1", "cluster": "c{1}"}}\n'
    lines = [row.format(number, number // 2) for number in range(4)]
    (tmp_path / "own.jsonl").write_text("".join(lines))
    log = evaluate(tmp_path, bench=str(tmp_path / "own.jsonl"), max_tokens=4, repetitions=1)
    assert log.status == "success" and log.samples is not None and log.results is not None
    assert [sample.metadata["cluster"] for sample in log.samples[:3]] == ["cluster c0", "cluster c0", "cluster c1"]
    assert log.results.scores[0].metrics["stderr"].params == {"cluster": "cluster"}


def test_answer_of_a_truncated_response_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"id": "a", "problem": "x", "answer": "1"}\n')
    score = registry.bench_grader(str(tmp_path / "own.jsonl"))
    marks = {}
    for stop in ("stop", "max_tokens"):
        output = ModelOutput.from_content("ghosttrace/any", "It is \\boxed{1}", stop)
        state = TaskState(ModelName("ghosttrace/any"), "a", 1, "x", [], output=output)
        marks[stop] = anyio.run(score, state, Target("1"))
    assert (marks["stop"].value, marks["stop"].answer) == ("C", "1")
    assert (marks["max_tokens"].value, marks["max_tokens"].answer) == ("I", None)


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    refused: dict[str, dict[str, Any]] = {
        "no arm 'nothing': choose from memento, full": {"arm": "nothing"},
        "no bench 'nothing': choose from ledger": {"bench": "nothing"},
        "ledger is a group of benchmarks, and a task is one of them: ledger-h0": {"bench": "ledger"},
        "the number of problems, must be at least 1": {"limit": 0},
        "restart-bare needs retained delimiters": {"arm": "restart-bare"},
        "swap needs a benchmark that can write counterfactual": {"arm": "swap", "bench": "problems.jsonl"},
        "there is no model 'toy-mixe': did you mean toy-mixed": {"model": "toy-mixe"},
        "the provider ghosttrace has no argument colour: use arm": {"model_args": {"colour": 3}},
        "mockllm/model cannot run under an arm: give --model ghosttrace/NAME": {"task": "mockllm/model"},
        "none/none cannot run under an arm: give --model ghosttrace/NAME": {"task": None},
    }
    (tmp_path / "problems.jsonl").write_text('{"id": "a", "problem": "x", "answer": "1"}\n')
    for sentence, given in refused.items():
        model = given.pop("task", "ghosttrace/toy-mixed")
        if given.get("bench", "").endswith(".jsonl"):
            given["bench"] = str(tmp_path / given["bench"])
        with pytest.raises(UserError, match=sentence) as raised:
            evaluate(tmp_path, model, **given)
        assert "\n" not in str(raised.value) and raised.value.exit_code == 2  # type: ignore[attr-defined]
    log = evaluate(tmp_path, limit=2, epochs=2)
    assert log.status == "error" and log.error is not None and "give -T repetitions=N" in log.error.message


def ask(arm: str, text: str = "x042", **config: Any) -> Any:
    """Ask a model of the provider once, outside a task of a benchmark."""

    async def asked() -> Any:
        model = get_model("ghosttrace/toy-mixed", arm=arm, memoize=False)
        return await model.generate([ChatMessageUser(content=text)], config=GenerateConfig(**config))

    return anyio.run(asked)


def test_provider_decodes_any_prompt_under_its_arm() -> None:
    toy, sampling = gt.load("toy-mixed"), gt.Sampling(90)
    request = gt.Request(toy.prompt_ids("x042"))
    texts = {}
    for arm in (Memento(), Restart()):
        (expected,) = gt.generate(toy.model, [request], toy.markup, toy.policy, sampling, arm.eraser)
        output = ask(arm.name, "x042", max_tokens=90)
        texts[arm.name] = output.completion
        assert output.completion == toy.tokenizer.decode(expected.tokens) and output.stop_reason == "max_tokens"
        assert output.metadata["arm"] == arm.name and output.usage.output_tokens == 90
        assert output.metadata["blocks"] == expected.blocks > 0 and output.metadata["tokens_erased"] > 0
    assert texts["memento"] != texts["restart"]
    with pytest.raises(UserError, match="swap needs the counterfactual blocks of a benchmark"):
        ask("swap")


def test_same_prompt_again_has_other_draws_and_the_same_order_repeats() -> None:
    async def asked() -> list[str]:
        model = get_model("ghosttrace/toy-mixed", memoize=False)
        config = GenerateConfig(temperature=3.0, max_tokens=20, seed=1)
        return [(await model.generate("x042", config=config)).completion for _ in range(2)]

    first, again = anyio.run(asked), anyio.run(asked)
    assert first == again and first[0] != first[1]


def test_entry_point_names_the_registry_and_loads_no_model() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["inspect_ai"] == {"ghosttrace": ENTRY_POINT}
    assert importlib.import_module(ENTRY_POINT) is registry
    script = f"import {ENTRY_POINT}, sys; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
