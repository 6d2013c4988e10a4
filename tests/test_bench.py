"""Benchmarks from files and from the hub: rows, prompts, protocol and invalid input."""

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from helpers.paths import DATA, requires_data

from ghosttrace import bench as benches
from ghosttrace.bench import HUB_SOURCES, bench_size, final_text, load_bench
from ghosttrace.bench.contests import HubSource, fetch_problems
from ghosttrace.data.read import read_traces
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import load
from ghosttrace.model.prompts import MATHEMATICS_TEMPLATE, PromptTemplate, chat_prompt, template_hash

PROBLEMS = [{"id": f"p{i}", "problem": f"What is {i}+{i}?", "answer": str(2 * i)} for i in range(4)]


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GHOSTTRACE_DATA", raising=False)


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@requires_data("bench/aime24.jsonl", "bench/aime25.jsonl")
@pytest.mark.parametrize("name", ["aime24", "aime25"])
@pytest.mark.parametrize("way", ["file", "folder"])
def test_benchmark_from_a_file_or_a_folder(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DATA / "bench" / f"{name}.jsonl"
    if way == "folder":
        monkeypatch.setenv("GHOSTTRACE_DATA", str(DATA))
    (bench,) = load_bench(name, file=file if way == "file" else None)
    assert (bench.name, len(bench.problems), bench_size(name)) == (name, 30, (30, 64))
    assert bench.origin.startswith(f"{name}.jsonl, sha256 ")
    protocol = bench.protocol
    assert (protocol.temperature, protocol.top_p, protocol.top_k, protocol.min_p) == (0.6, 0.95, 20, 0)
    assert (protocol.max_new_tokens, protocol.repetitions) == (32_000, 64)
    for problem in bench.problems:
        assert problem.prompt.endswith(r"put your final answer within \boxed{}.")
        right = bench.grade(problem, rf"So the answer is $\boxed{{{problem.answer}}}$.")
        assert right.correct and right.rule == "boxed/integer"
    assert len(load_bench(name, 3, file=file)[0].problems) == 3
    assert load_bench(name, 3, file=file)[0].protocol.repetitions == 64


def test_a_local_file_is_a_benchmark(tmp_path: Path) -> None:
    (bench,) = load_bench(str(write(tmp_path / "mine.jsonl", PROBLEMS)))
    assert (bench.name, bench.protocol.repetitions) == ("mine", 64)
    assert bench.grade(bench.problems[3], r"\boxed{06}").correct
    (letters,) = load_bench(str(write(tmp_path / "choice.jsonl", [{"id": 1, "problem": "Which?", "answer": "C"}])))
    assert letters.grade(letters.problems[0], "The answer is (C).").correct
    assert "letter" in letters.problems[0].prompt
    (other,) = load_bench(str(write(tmp_path / "x.jsonl", [{"id": 1, "problem": "?", "answer": "\\frac{1}{2}"}])))
    assert other.grade(other.problems[0], r"\boxed{0.5}").correct
    large = [{"id": i, "problem": "?", "answer": 1} for i in range(54)]
    assert load_bench(str(write(tmp_path / "few.jsonl", large[:53])), 10)[0].protocol.repetitions == 64
    assert load_bench(str(write(tmp_path / "large.jsonl", large)), 10)[0].protocol.repetitions == 2
    file = write(tmp_path / "line.jsonl", [{"id": 1, "problem": "a\u2028b", "answer": " 7 "}])
    file.write_text(json.dumps({"id": 1, "problem": "a\u2028b", "answer": " 7 "}, ensure_ascii=False))
    (odd,) = load_bench(str(file))
    assert "a\u2028b" in odd.problems[0].prompt and odd.problems[0].answer == "7"
    assert bench_size(str(tmp_path / "large.jsonl")) == (54, 2)


BAD = {
    "line 2 is not valid JSON": '{"id": 1, "problem": "?", "answer": 1}\n{"id": 2,\n',
    "line 3 is not a JSON object": '{"id": 1, "problem": "?", "answer": 1}\n\n[1]\n',
    "line 2 repeats the id 'a'": '{"id": "a", "problem": "?", "answer": 1}\n{"id": "a", "problem": "!", "answer": 2}\n',
    "line 1 has no answer": '{"id": 1, "problem": "?"}\n',
    "line 1 has no problem and no answer": '{"id": 1, "problem": " ", "answer": null}\n',
    "holds no problems": "\n",
    "line 2 is nested too deeply": '{"id": 1, "problem": "?", "answer": 1}\n' + "[" * 100_000,
    "line 1 holds half a surrogate pair": '{"id": 1, "problem": "\\udc00", "answer": 1}\n',
    "line 1 is not valid JSON": '{"id": ' + "1" * 5000 + "}",
}


@pytest.mark.parametrize("message", BAD)
def test_invalid_file_is_refused_with_the_line_number(message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(BAD[message])
    with pytest.raises(UserError, match=message) as refused:
        load_bench(str(file))
    assert "\n" not in str(refused.value)


def test_other_invalid_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*nowhere\.jsonl: give a JSONL file"):
        load_bench("nowhere.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        load_bench(str(tmp_path / "latin.jsonl"))
    with pytest.raises(UserError, match="not of ledger"):
        load_bench("ledger", file=tmp_path / "latin.jsonl")
    with pytest.raises(UserError, match="no bench 'aime99'"):
        bench_size("aime99")


@pytest.mark.parametrize("name", ["aime24", "hmmt-feb23"])
def test_unreachable_hub_is_reported(name: str) -> None:
    """The tests run with the hub offline."""
    with pytest.raises(
        UserError, match=f"{name} .*cannot be read from the hub here: give --bench-file .*GHOSTTRACE_DATA"
    ):
        load_bench(name)


def test_gated_data_set_error_explains_how_to_get_access(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        UserError, match=r"gpqa-diamond is gated: ask for access at https://huggingface.co/datasets/Idav"
    ):
        load_bench("gpqa-diamond")


@pytest.mark.parametrize("error", [OSError("the error was propagated"), ValueError('Unknown split "test".')])
def test_other_hub_errors_are_not_reported_as_gated(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=r"math500 .*cannot be read from the hub here"):
        load_bench("math500")
    with pytest.raises(UserError, match="no data set of that name with a split 'train' can be read"):
        read_traces("some/traces")


def test_data_set_with_unknown_columns_is_refused(tmp_path: Path) -> None:
    repo = hub_folder(tmp_path / "set", [{"question": "p", "answer": 12}])
    with pytest.raises(UserError, match="row 0 has no problem: every line needs"):
        fetch_problems("some", HubSource(repo, "integer", 1, "0" * 40))
    with pytest.raises(UserError, match="row 0 has no problem and no answer"):
        fetch_problems("some", HubSource(repo, "choice", 1, "0" * 40))


def hub_folder(path: Path, rows: list[dict[str, object]]) -> str:
    """Write a data set in the layout of the hub, which `datasets` also reads from a folder."""
    (path / "data").mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(path / "data" / "train-00000-of-00001.parquet")
    return str(path)


COLUMNS = {
    "MathArena": {"problem_idx": 7, "problem": "p", "answer": 12, "problem_type": ["Algebra"]},
    "aime_2024": {"id": 7, "problem": "p", "solution": "s", "answer": "12", "url": "u", "year": "2024"},
    "MATH-500": {"problem": "p", "solution": "s", "answer": "12", "subject": "Algebra", "level": 1, "unique_id": "7"},
}


@pytest.mark.parametrize("layout", COLUMNS)
def test_rows_of_all_hub_data_sets_get_the_same_columns(layout: str, tmp_path: Path) -> None:
    repo = hub_folder(tmp_path / "set", [COLUMNS[layout]])
    (problem,), origin = fetch_problems("some", HubSource(repo, "integer", 1, "0" * 40))
    assert (problem.id, problem.prompt, problem.answer) == ("7", "p", "12")
    assert origin == f"{repo}@{'0' * 40}"


def test_pinned_revision_and_split_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls: list[object] = []

    def load_dataset(*args: object, **kwargs: object) -> list[dict[str, object]]:
        calls.append((args, kwargs))
        return [
            COLUMNS["MATH-500"]
            | {"id": "other", "Question": "q?"}
            | {f"Incorrect Answer {i}": i for i in (1, 2, 3)}
            | {"Correct Answer": "c", "Record ID": "r"}
        ]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("math500", "gpqa-diamond"):
        source = HUB_SOURCES[name]
        fetch_problems(name, source)
        assert calls.pop() == ((source.repo, source.config), {"split": source.split, "revision": source.revision})
    assert fetch_problems("math500", HUB_SOURCES["math500"])[0][0].id == "7"


def test_data_folder_may_contain_the_file_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "aime24.jsonl", PROBLEMS)
    monkeypatch.setenv("GHOSTTRACE_DATA", str(tmp_path))
    assert len(load_bench("aime24")[0].problems) == 4


def test_order_of_choices_depends_on_the_question_alone(tmp_path: Path) -> None:
    wrong = {f"Incorrect Answer {i}": f"wrong {i}" for i in (1, 2, 3)}
    rows = [{"Question": f"q{i}?", "Correct Answer": "right", "Record ID": f"r{i}"} | wrong for i in range(40)]
    problems, _ = fetch_problems("some", HubSource(hub_folder(tmp_path / "a", rows), "choice", 40, "0" * 40))
    for problem in problems:
        assert f"{problem.answer}) right" in problem.prompt
    assert Counter(problem.answer for problem in problems).keys() == set("ABCD")
    reversed_, _ = fetch_problems("some", HubSource(hub_folder(tmp_path / "b", rows[::-1]), "choice", 40, "0" * 40))
    assert reversed_ == problems[::-1]


def test_unpinned_sources_are_marked() -> None:
    for name, source in HUB_SOURCES.items():
        assert source.revision is None or len(source.revision) == 40, name
        assert source.size == 198 or source.rule != "choice"
    assert {name for name, source in HUB_SOURCES.items() if source.revision is None} == {
        "hmmt-feb23",
        "hmmt-feb24",
        "cmimc25",
    }
    assert benches.BENCH_GROUPS["hmmt"] == ("hmmt-feb23", "hmmt-feb24", "hmmt-feb25", "hmmt-feb26", "hmmt-nov25")


@pytest.mark.parametrize(
    ("response", "finish", "graded"),
    [
        ("<think>a</think>b", "eos", "b"),
        ("<think>a</think>b</think>c", "eos", "c"),
        ("<think>a \\boxed{1}", "length", ""),
        ("<think>a</think>b", "length", "b"),
        ("b", "eos", "b"),
    ],
)
def test_graded_text(response: str, finish: str, graded: str) -> None:
    assert final_text(response, finish) == graded


class Talk:
    """Tokenizer stub with a chat template only."""

    def __init__(self, system: str) -> None:
        self.system = system

    def apply_chat_template(self, turns: list[dict[str, str]], **_: object) -> str:
        system = f"<|im_start|>system\n{self.system}<|im_end|>\n" if self.system else ""
        return f"{system}<|im_start|>user\n{turns[0]['content']}<|im_end|>\n<|im_start|>assistant\n"


def test_system_prompts_by_family() -> None:
    """Qwen3 and Olmo 3 get no system prompt, other families keep theirs; the user's text is unchanged."""
    user_text = "<|im_start|>system\nquoted<|im_end|>\n"
    for family in ("qwen3", "olmo3"):
        assert chat_prompt(Talk("Be good."), family, user_text) == chat_prompt(Talk(""), family, user_text)
        assert user_text in chat_prompt(Talk(""), family, user_text)
    for family in ("phi3", "qwen2", None):
        assert "Be good." in chat_prompt(Talk("Be good."), family, "?")


def test_template_hash_covers_everything_around_the_problem() -> None:
    expected_hash = template_hash(Talk(""), "phi3", MATHEMATICS_TEMPLATE)
    changed = PromptTemplate(
        MATHEMATICS_TEMPLATE.name, MATHEMATICS_TEMPLATE.version + 1, MATHEMATICS_TEMPLATE.text + " Be brief."
    )
    others = [template_hash(Talk(""), "phi3", changed), template_hash(Talk("Be good."), "phi3", MATHEMATICS_TEMPLATE)]
    assert len({expected_hash, *others}) == 3
    assert template_hash(Talk("Be good."), "qwen3", MATHEMATICS_TEMPLATE) == expected_hash


@requires_data("tokenizers/qwen3/tokenizer.json")
def test_prompt_of_the_real_qwen_tokenizer() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers" / "qwen3")
    text = chat_prompt(tokenizer, "qwen3", MATHEMATICS_TEMPLATE.fill("1+1?"))
    assert text == (
        "<|im_start|>user\n1+1?\n\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_toy_prompts_equal_the_training_prompts() -> None:
    checkpoint = load("toy-mixed")
    assert checkpoint.tokenizer.convert_ids_to_tokens(checkpoint.prompt_ids("x042")) == [
        *("<|user|>", "x", "0", "4", "2", "<|assistant|>")
    ]
