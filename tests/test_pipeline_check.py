"""`data check`: real traces and assembled rows pass, and each mutation is caught with the right message."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import DATA, requires_data
from helpers.text_traces import TRACES
from test_pipeline_dataset import annotated, write

from ghosttrace.data.read import parse_trace
from ghosttrace.errors import UserError
from ghosttrace.pipeline.assembly import assemble
from ghosttrace.pipeline.check import check_dataset, row_problems
from ghosttrace.pipeline.rows import Memento, Row
from ghosttrace.pipeline.segmentation import BlockLimits, segment
from ghosttrace.pipeline.settings import Quality

Change = Callable[[dict[str, Any]], Any]


def problems(path: Path, *rows: Any) -> list[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [problem.message for problem in check_dataset(path).problems]


@requires_data(*TRACES)
@pytest.mark.parametrize("name", TRACES)
def test_real_traces_pass(name: str) -> None:
    report = check_dataset(DATA / name)
    assert report.valid and (report.rows, report.blocks) == (1, 5 if "response" in name else 4)


def real(name: int = 0) -> dict[str, Any]:
    return dict(json.loads((DATA / TRACES[name]).read_text()))


def real_full() -> dict[str, Any]:
    """Return a real trace as a row of `full`, one sentence a line, with annotations."""
    source = real()
    texts = [segment["text"] for segment in source["segments"]]
    sentences, blocks = [], []
    for text in texts[:-1:2]:
        lines = text.splitlines(keepends=True)
        blocks.append((len(sentences), len(sentences) + len(lines) - 1))
        sentences += lines
    scores = [3.0 if any(index + 1 == first for first, _ in blocks) else 0.0 for index in range(len(sentences) - 1)]
    tokens = tuple(len(sentence) // 4 + 1 for sentence in sentences)
    rubric = {"formulas": 3, "values": 2, "methods": 2, "validation": 1, "no_hallucination": 1}
    row = Row("real", source["problem"], "".join(sentences), texts[-1], sentences=tuple(sentences),
              sentence_tokens=tokens, boundary_scores=tuple(scores))  # fmt: skip
    row = segment(row, BlockLimits(min_tokens=50, min_blocks=5, max_blocks=5, spread_weight=0.1))
    assert row.blocks == tuple(blocks)
    row = Row(**{**vars(row), "mementos": tuple(Memento(text, 9, rubric=rubric) for text in texts[1::2])})
    return assemble(row, Quality()) | {"ghost_bits": [0.1] * 5}


def in_response(old: str, new: str, count: int = 1) -> Change:
    return lambda row: row.update(response=row["response"].replace(old, new, count))


def setting(name: str, value: Any) -> Change:
    return lambda row: row.update({name: value})


def in_segment(index: int, **values: Any) -> Change:
    return lambda row: row["segments"][index].update(values)


def in_list(name: str, index: int, value: Any) -> Change:
    return lambda row: row[name].__setitem__(index, value)


def shift(row: dict[str, Any]) -> None:
    row["blocks"][0][1] -= 1
    row["blocks"][1][0] -= 1


SEGMENTS: list[tuple[Change, str]] = [
    (lambda row: row.pop("segments"), "the row has neither 'segments' nor 'response'"),
    (setting("problem", ""), "problem is missing, empty or no text"),
    (setting("problem", None), "the row has a 'problem' that is not text"),
    (setting("problem", "<|block_end|> What?"), "problem holds <|block_end|>"),
    (setting("segments", []), "the last segment is no answer"),
    (in_segment(0, type="chapter"), "the row has invalid 'segments'"),
    (in_segment(0, type="summary"), "segment 0 is of type summary, and block is expected"),
    (lambda row: row["segments"].pop(1), "segment 1 is of type block, and summary is expected"),
    (lambda row: row["segments"].pop(), "the last segment is no answer"),
    (in_segment(2, block_idx=7), "segment 2 has block_idx 7, and 2 is expected"),
    (in_segment(0, char_len=12), "segment 0 has 2092 characters, and char_len says 12"),
    (in_segment(1, text="x <|summary_end|>", char_len=17), "segment 1 holds <|summary_end|> in its text"),
    (in_segment(1, text=" ", char_len=1), "memento 1 is empty"),
    (in_segment(2, text="", char_len=0), "block 2 is empty"),
    (in_segment(3, text="x" * 1300, char_len=1300), "memento 2 is not shorter than its block"),
    (in_segment(-1, text="", char_len=0), "no answer after </think>"),
]
ROWS: list[tuple[Change, str]] = [
    (in_response("<think>", ""), "the response does not begin with <think>"),
    (in_response("<|block_end|>", ""), "<|summary_start|> where <|block_end|> is expected, at character 2115"),
    (in_response("<|summary_end|>", "<|summary_start|>"), "<|summary_start|> where <|summary_end|> is expected, at"),
    (in_response("<|block_end|>", "<|block_end|>so"), "text between block 1 and its memento: 'so'"),
    (in_response("<|summary_end|>", "<|summary_end|>so"), "text before block 2: 'so'"),
    (in_response("</think>", ""), "the response ends before </think>"),
    (in_response("</think>", "</think></think>"), "</think> in the answer, at character"),
    (in_response("</think>", "</think><|block_start|>"), "<|block_start|> in the answer, at character"),
    (setting("response", "<think>\n</think>\n504"), "the response has no block"),
    (setting("response", 7), "the row has a 'response' that is not text"),
    (setting("domain", 3), "domain is no text"),
    (setting("difficulty", [3]), "difficulty is neither a number nor text"),
    (setting("blocks", None), "blocks is missing, and the row has sentences"),
    (in_list("sentences", 3, ""), "sentences is no list of texts that are not empty"),
    (in_list("blocks", 1, [3]), "blocks is no list of [first, last]"),
    (in_list("block_summaries", 0, 5), "block_summaries is no list of texts"),
    (lambda row: row["block_summaries"].pop(), "5 blocks, 4 block_summaries and 5 blocks in the response"),
    (lambda row: row["blocks"][1].__setitem__(0, 0), "block 2 begins at sentence 0, and"),
    (lambda row: row["blocks"][0].__setitem__(1, -1), "block 1 ends at sentence -1, before it begins"),
    (lambda row: row["sentences"].append("More."), "the blocks end at sentence"),
    (shift, "block 1 of the response is not made of its sentences"),
    (in_list("block_summaries", 2, "Else."), "memento 3 of the response is not block_summaries[2]"),
    (lambda row: row["boundary_scores"].pop(), "boundary_scores is no list of"),
    (in_list("boundary_scores", 0, 3.5), "boundary_scores holds 3.5, and 0 to 3 is allowed"),
    (in_list("memento_scores", 0, 11), "memento_scores holds 11, and 0 to 10 is allowed"),
    (in_list("memento_scores", 0, 5), "avg_final_score is 9.0, and the mean of memento_scores is 8.2"),
    (in_list("sentence_tokens", 0, 900), "objective is"),
    (setting("objective_bound", 9.0), "objective_bound is 9, so the blocks are not proven to be the best"),
    *(
        (setting(name, value), f"{name} is no number")
        for name in ("objective", "objective_bound", "spread_weight", "avg_final_score")
        for value in ("x", [3], float("nan"), 10**400)
    ),
    (
        lambda row: row.update(sentence_tokens=[0] * len(row["sentences"])),
        "sentence_tokens holds a negative number, or nothing but 0",
    ),
    (in_list("boundary_scores", 0, 10**400), "boundary_scores is no list of"),
    (in_list("memento_scores", 0, float("nan")), "memento_scores is no list of"),
    (setting("difficulty", float("nan")), "difficulty is neither"),
    (setting("accepted", "yes"), "accepted is neither true nor false"),
    (setting("memento_problems", ["x"] * 5), "memento_problems is no list of 5 lists of texts"),
    (setting("memento_problems", [["bad"], [], [], [], []]), "accepted is true, and a memento has a problem: bad"),
    (setting("ghost_bits", "x"), "ghost_bits is no list of 5 numbers"),
    (in_list("ghost_bits", 0, None), "ghost_bits is no list of 5 numbers"),
]


@requires_data(*TRACES)
@pytest.mark.parametrize("number", range(len(SEGMENTS)))
def test_mutations_of_a_trace_in_segments(number: int) -> None:
    change, message = SEGMENTS[number]
    row = deepcopy(real())
    change(row)
    found = list(row_problems(row))
    assert found and found[0].startswith(message), found


@requires_data(*TRACES)
@pytest.mark.parametrize("number", range(len(ROWS)))
def test_mutations_of_a_row(number: int) -> None:
    change, message = ROWS[number]
    row = real_full()
    assert not list(row_problems(row))
    change(row)
    found = list(row_problems(row))
    assert found and found[0].startswith(message), found


@requires_data(*TRACES)
def test_there_are_thirty_mutations_of_each_kind_of_message() -> None:
    assert len(SEGMENTS) + len(ROWS) >= 30
    assert len({message for _, message in SEGMENTS + ROWS}) >= 30


@requires_data(*TRACES)
def test_both_configurations_of_real_traces_pass(tmp_path: Path) -> None:
    default = {"problem": real(1)["problem"], "response": parse_trace(real(1), "x").response}
    assert problems(tmp_path / "rows.jsonl", default, real_full()) == []


def test_written_data_sets_pass(tmp_path: Path) -> None:
    row = annotated()
    row = Row(**{**vars(row), "sentences": ("A longer sentence. ", "y ", "And more text."), "certificate": None})
    cut = segment(Row(**{**vars(row), "blocks": ()}), BlockLimits(min_tokens=1, max_blocks=2))
    write(tmp_path, Row(**{**vars(row), "blocks": cut.blocks, "certificate": cut.certificate}))
    for name in ("default/train.parquet", "full/train.jsonl", "full/train.parquet"):
        report = check_dataset(tmp_path / name)
        assert report.valid, report.problems
        assert report.rows == 1


def test_repeated_names_and_what_is_no_row(tmp_path: Path) -> None:
    row = {"problem": "p", "task_id": "a", "response": "<think><|block_start|>long<|block_end|><|summary_start|>x"}
    row["response"] += "<|summary_end|></think>4"
    assert problems(tmp_path / "rows.jsonl", row, row, [1]) == [
        "repeats the name of row 0",
        "the row has neither 'segments' nor 'response'",
    ]


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no rows"):
        check_dataset(tmp_path / "rows.jsonl")
