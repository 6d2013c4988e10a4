"""Selection of seed traces in all styles, and data sets with their card."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import huggingface_hub
import pytest
import yaml
from helpers.paths import DATA, requires_data
from pyarrow import parquet

from ghosttrace.data.read import iter_records, read_traces
from ghosttrace.errors import UserError
from ghosttrace.pipeline.assembly import DEFAULT_COLUMNS, SCHEMA, assemble
from ghosttrace.pipeline.dataset import DatasetWriter, push_to_hub
from ghosttrace.pipeline.rows import Certificate, Memento, Row, RowError, SetAside, read_rows, row_line
from ghosttrace.pipeline.selection import Filters, select
from ghosttrace.pipeline.settings import Quality
from ghosttrace.pipeline.tokens import estimate_tokens
from ghosttrace.report.dataset_card import PANELS, dataset_card, shape_figure, shape_values

P, T, A = "What is 6 x 7?", "Six times seven. So 42.", "It is 42."
TAGGED = f"<think>\n{T}\n</think>\n\n{A}"
OPEN_THOUGHTS = (
    f"<|begin_of_thought|>\n\n{T}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{A}\n\n<|end_of_solution|>"
)
STYLES: dict[str, dict[str, Any]] = {
    "OpenThoughts": {"conversations": [{"from": "user", "value": P}, {"from": "assistant", "value": OPEN_THOUGHTS}]},
    "OpenThoughts3": {"conversations": [{"from": "human", "value": P}, {"from": "gpt", "value": TAGGED}]},
    "OpenThoughts metadata": {"problem": P, "deepseek_reasoning": T, "deepseek_solution": A},
    "QwQ": {"problem": P, "cot": f"<think> {T}\n\n**Final Answer**\n\\boxed{{42}}\n</think>"},
    "DeepSeek-R1": {"question": P, "reasoning_content": T, "content": A},
    "DeepSeek-R1, opened by the template": {"prompt": P, "response": f"{T}\n</think>\n{A}"},
    "Qwen3": {
        "messages": [
            {"role": "system", "content": "Think."},
            {"role": "user", "content": P},
            {"role": "assistant", "content": TAGGED},
        ]
    },
    "Qwen3 parsed": {
        "messages": [{"role": "user", "content": P}, {"role": "assistant", "content": A, "reasoning_content": T}]
    },
}
ANY = Filters(min_tokens=1)


def selected(*records: Any, filters: Filters = ANY) -> list[Row | SetAside]:
    return list(select([("seeds", records)], filters, estimate_tokens))


@pytest.mark.parametrize("style", STYLES)
def test_styles(style: str) -> None:
    (row,) = selected(STYLES[style] | {"id": 7, "domain": "math", "source": "s", "difficulty": 3})
    answer = "**Final Answer**\n\\boxed{42}" if style == "QwQ" else A
    assert row == Row("7", P, T, answer, "math", "s", 3.0)


def flat(response: Any, problem: Any = P) -> dict[str, Any]:
    return {"problem": problem, "response": response}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([1], "no columns: a row must be an object"),
        ({"response": TAGGED}, "no problem"),
        ({"problem": P}, "no response"),
        (flat(f"<think>{T} {A}"), "unclosed <think>"),
        (flat(A), "no think tags"),
        (flat(TAGGED + TAGGED), "several think tags"),
        (flat(f"</think> {T} <think> {A}"), "text before <think>"),
        (flat(f"Hello <think>{T}</think>{A}"), "text before <think>"),
        (flat(f"<think>{T}</think>"), "no answer after the reasoning"),
        (flat(f"<think> </think>{A}"), "no reasoning"),
        (flat(f"<think>{T} 因此答案是</think>{A}"), "holds Chinese, Japanese or Korean characters"),
        (flat(TAGGED, problem="六乘七"), "holds Chinese, Japanese or Korean characters"),
        (flat(f"<think>{T} <|block_end|></think>{A}"), "holds delimiters or think tags in its text"),
        (flat("<think>Six.</think>42"), "too short: 2 tokens of reasoning"),
        (flat(f"<think>{T * 9}</think>{A}"), "too long: 72 tokens of reasoning"),
        (flat(12), "no response"),
        (flat(f"<think>{T} <|im_end|></think>{A}"), "holds special tokens of a chat template: <|im_end|>"),
        (flat(TAGGED) | {"difficulty": 10**400}, "difficulty is no finite number"),
        (flat(TAGGED) | {"difficulty": float("nan")}, "difficulty is no finite number"),
        ({"problem": P, "reasoning": T, "answer": 42}, "the answer is no text"),
        (
            {"problem": P, "reasoning": T, "content": [{"type": "text", "text": A}]},
            "the answer is no text",
        ),
        ({"messages": [{"role": "user", "content": P}]}, "no response"),
    ],
)
def test_drops_have_a_reason(record: Any, reason: str) -> None:
    (dropped,) = selected(record, filters=Filters(min_tokens=5, max_tokens=50))
    assert isinstance(dropped, SetAside) and (dropped.stage, dropped.reason) == ("select", reason)


def test_repeated_traces_are_dropped_and_repeated_names_get_that_of_their_source() -> None:
    first = flat(TAGGED) | {"id": 0}
    others = [first, flat(TAGGED, problem="Else?") | {"id": 0}, flat(TAGGED, problem="More?") | {"id": 0}]
    found = list(select([("a", [first]), ("b", others)], ANY, estimate_tokens))
    assert [getattr(item, "reason", "") or item.task_id for item in found] == ["0", "repeated trace", "b:0", "b:0:2"]


def test_blank_lines_cost_no_time_in_the_search_for_the_answer() -> None:
    begin = perf_counter()
    (dropped,) = selected(flat("<think>abc." + "\n" * 3000 + "x</think>"))
    assert isinstance(dropped, SetAside) and perf_counter() - begin < 1


@requires_data("traces/memento_repo_example_trace.jsonl")
def test_real_trace_is_selected() -> None:
    (row,) = selected(*iter_records(DATA / "traces/memento_repo_example_trace.jsonl"), filters=Filters())
    assert isinstance(row, Row) and row.task_id == "ot3-train-0000030"
    assert row.thought.startswith("Okay, so I have this problem") and row.answer.startswith("**Final Answer**")


def annotated(task_id: str = "a", score: int = 3) -> Row:
    rubric = {"formulas": score, "values": 2, "methods": 2, "validation": 1, "no_hallucination": 1, "result_first": 1}
    mementos = tuple(Memento(text, 1, rubric=rubric, feedback="") for text in ("one", "two"))
    certificate = Certificate(1.5, 1.5, 3, 0.5, 1, None, 1, None)
    return Row(
        task_id, P, "x y z", A, "math", None, 3.0, ("x ", "y ", "z"), (1, 1, 1), (0.5, 3.0), ((0, 1), (2, 2)),
        certificate, (), mementos, (0.25, -0.5),
    )  # fmt: skip


def test_rows_survive_their_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(row_line(annotated()) + row_line(Row("b", P, T, A)))
    assert list(read_rows(tmp_path / "rows.jsonl")) == [annotated(), Row("b", P, T, A)]


def test_other_files_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"task_id": "a", "problem": 3}))
    with pytest.raises(UserError, match=r"row 1, is no row of ghosttrace data \(problem: .*start with .* select"):
        list(read_rows(tmp_path / "rows.jsonl"))


def test_an_assembled_row_holds_the_whole_trace() -> None:
    row = assemble(annotated(), Quality())
    assert list(row) and set(row) == set(SCHEMA.names)
    assert row["response"] == (
        "<think>\n<|block_start|>x y <|block_end|><|summary_start|>one<|summary_end|>"
        "<|block_start|>z<|block_end|><|summary_start|>two<|summary_end|></think>\nIt is 42."
    )
    assert (row["accepted"], row["avg_final_score"]) == (True, 10.0)
    assert not assemble(annotated(score=0), Quality())["accepted"]
    with pytest.raises(RowError, match="run ghosttrace data compress and judge first"):
        assemble(Row("b", P, T, A), Quality())


def test_an_assembled_response_is_of_the_format() -> None:
    for sentence in ("x <|block_end|> ", "x <|im_end|> "):
        with pytest.raises(RowError, match=r"not of the format|special tokens"):
            assemble(replace(annotated(), sentences=(sentence, "y ", "z")), Quality())


def write(folder: Path, *rows: Row) -> DatasetWriter:
    with DatasetWriter(folder) as writer:
        for row in rows:
            writer.add(assemble(row, Quality()))
    return writer


def test_both_configurations_and_the_rejected_rows(tmp_path: Path) -> None:
    writer = write(tmp_path, annotated("a"), annotated("b", score=0), annotated("c"))
    assert writer.counts == {"default": 2, "full": 2, "rejected": 1}
    assert parquet.read_schema(tmp_path / "default/train.parquet").names == list(DEFAULT_COLUMNS)
    full = parquet.read_table(tmp_path / "full/train.parquet").to_pylist()
    assert full == list(iter_records(tmp_path / "full/train.jsonl"))
    assert [row["task_id"] for row in full] == ["a", "c"] and full[0]["blocks"] == [[0, 1], [2, 2]]
    assert len(read_traces(tmp_path / "default/train.jsonl")) == len(read_traces(tmp_path / "default/train.parquet"))


def test_parquet_files_have_groups_of_many_rows(tmp_path: Path) -> None:
    row = assemble(annotated(), Quality())
    with DatasetWriter(tmp_path) as writer:
        for _ in range(257):
            writer.add(row)
    file = parquet.ParquetFile(tmp_path / "default/train.parquet")
    assert (file.num_row_groups, file.metadata.num_rows) == (2, 257)


def test_an_unfinished_data_set_leaves_the_last_one_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, annotated())
    before = (tmp_path / "full/train.parquet").read_bytes()
    with pytest.raises(RowError):
        write(tmp_path, annotated("b"), Row("c", P, T, A))
    assert (tmp_path / "full/train.parquet").read_bytes() == before


SUMMARY = {
    "rows": {"default": 2, "full": 2, "rejected": 0},
    "model": "scripted",
    "prompts": {"score": "v1"},
    "shape": [{"what": "Blocks per trace", "mean": 2.0, "median": 2}],
    "set_aside": [{"stage": "select", "reason": "no problem", "count": 4}],
}


def test_card_names_its_configurations_and_counts() -> None:
    card = dataset_card(SUMMARY)
    _, head, body = card.split("---\n", 2)
    configurations = yaml.safe_load(head)["configs"]
    assert [item["config_name"] for item in configurations] == ["default", "full"]
    assert all(item["data_files"] == f"{item['config_name']}/train.parquet" for item in configurations)
    assert "| select | no problem | 4 |" in body and "| default | 2 |" in body


def test_panels_show_the_shape_of_traces() -> None:
    rows = [
        {"domain": "math", "block_tokens": [100, 300], "memento_tokens": [10, 30]},
        {"domain": None, "block_tokens": [500], "memento_tokens": [100]},
    ]
    assert list(shape_values(rows).values()) == [[2, 1], [100, 300, 500], [10, 30, 100], [10.0, 5.0]]
    axes = shape_figure(rows).axes
    assert [axis.get_title() for axis in axes] == list(PANELS)
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == [
        "math: median 2.0",
        "no domain: median 1.0",
    ]
    assert len(shape_figure([]).axes) == 4


def test_push_uploads_card_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    class Api:
        def create_repo(self, repository: str, repo_type: str, private: bool, exist_ok: bool) -> None:
            assert (repository, repo_type, private, exist_ok) == ("me/data", "dataset", True, True)
            calls["create"] += 1

        def upload_folder(self, *, repo_id: str, repo_type: str, folder_path: str, allow_patterns: list[str]) -> str:
            assert (repo_id, repo_type, folder_path) == ("me/data", "dataset", str(tmp_path))
            assert "README.md" in allow_patterns and "calls.sqlite" not in allow_patterns
            calls["upload"] += 1
            return "https://hub/commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push_to_hub(tmp_path, "me/data") == "https://hub/commit" and calls == {"create": 1, "upload": 1}


def test_a_hub_that_refuses_gives_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be pushed to"):
        push_to_hub(tmp_path, "not a/repository/name")
