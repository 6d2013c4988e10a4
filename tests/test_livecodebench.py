"""LiveCodeBench: problems from files, tests in pickles that are not executed, programs in texts, outputs, grades."""

import base64
import json
import pickle
import sys
import zlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import huggingface_hub
import pandas as pd
import pytest
from helpers.commands import ghosttrace
from helpers.livecodebench import (
    PAIRS,
    SUM,
    cases,
    functional_row,
    packed,
    requires_isolation,
    response,
    row,
    write,
)
from hypothesis import given
from hypothesis import strategies as st

from ghosttrace.bench import BENCH_NAMES, bench_size, livecodebench, load_bench, program_tests
from ghosttrace.bench.livecodebench import LIVECODEBENCH, fetch_rows, find_rows, read_problems
from ghosttrace.bench.program_tests import read_tests, unpickle_text
from ghosttrace.bench.programs import ProgramTest, extract_program, grade_program, same_output, same_value
from ghosttrace.bench.sandbox import Limits
from ghosttrace.errors import UserError

QUICK = Limits(cpu_seconds=1, wall_seconds=5.0)
STDIN = (ProgramTest("1 2\n", "3\n"), ProgramTest("5 6", "11"))


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GHOSTTRACE_DATA", raising=False)


@requires_isolation
@pytest.mark.parametrize("way", ["file", "variable", "path", "folder"])
def test_benchmark_from_files(way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = write(tmp_path / "livecodebench.jsonl", row(), functional_row())
    if way == "folder":
        (tmp_path / "copy").mkdir()
        for name in LIVECODEBENCH.files:
            write(tmp_path / "copy" / name, row(question_id=name))
        write(tmp_path / "copy" / LIVECODEBENCH.files[0], row(), functional_row())
    if way == "variable":
        monkeypatch.setenv("GHOSTTRACE_DATA", str(tmp_path))
    given_file = {"file": file, "folder": tmp_path / "copy"}.get(way)
    (bench,) = load_bench(str(file) if way == "path" else "livecodebench", 2, file=given_file)
    assert (bench.name, bench.size) == ("livecodebench", 1055)
    assert bench.origin.startswith("copy, sha256 " if way == "folder" else "livecodebench.jsonl, sha256 ")
    assert (bench.protocol.temperature, bench.protocol.repetitions) == (0.6, 64)
    assert (bench.template.name, bench.template.version) == ("program", 1)
    stdin, functional = bench.problems
    assert stdin.id == "abc_a" and "reads the input from stdin" in stdin.prompt and "stdin" not in functional.prompt
    assert "def pairs(self, numbers: List[int], k: int)" in functional.prompt
    assert stdin.answer.startswith("3 tests, sha256 ")
    assert bench.grade(stdin, response(SUM)).correct and bench.grade(functional, response(PAIRS)).correct
    assert bench.grade(functional, response(SUM)).rule == "code-block/runtime-error"


@requires_isolation
def test_the_command_runs_it(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", row(), functional_row())
    short = ("--repetitions", "1", "--max-new-tokens", "5", "--arms", "restart")
    ended = ghosttrace("ablate", "--bench", str(file), *short, "--out", str(tmp_path / "run"))
    assert ended.returncode == 12, ended.stderr  # no response finished a block: the toy writes no programs
    samples = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert set(samples["bench"]) == {"mine"} and set(samples["rule"]) == {"none/no-code"}
    assert samples["extracted"].isna().all() and set(samples["problem"]) == {"abc_a", "3700"}


def test_names_and_sizes(tmp_path: Path) -> None:
    assert "livecodebench" in BENCH_NAMES and bench_size("livecodebench") == (1055, 2)
    assert LIVECODEBENCH.files[0] == "test.jsonl" and LIVECODEBENCH.files[5] == "test6.jsonl"
    assert bench_size(str(write(tmp_path / "few.jsonl", row(), functional_row()))) == (2, 64)
    many = [row(question_id=str(number)) for number in range(54)]
    assert bench_size(str(write(tmp_path / "many.jsonl", *many))) == (54, 2)
    mine = {"id": "a", "problem": "?", "answer": "1", "question_id": 7}
    assert load_bench(str(write(tmp_path / "mathematics.jsonl", mine)))[0].template.name == "mathematics"


def test_pinned_files_are_downloaded_as_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in LIVECODEBENCH.files:
        write(tmp_path / name, row(question_id=f"{name} 1"), row(question_id=f"{name} 2"))
    asked: list[object] = []

    def download(repo: str, name: str, **options: str) -> str:
        asked.append((repo, name, options))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    rows, size, origin = fetch_rows(3)
    options = {"repo_type": "dataset", "revision": "0fe84c3912ea0c4d4a78037083943e8f0c4dd505"}
    assert asked == [(LIVECODEBENCH.repo, name, options) for name in ("test.jsonl", "test2.jsonl")]
    assert (size, origin) == (1055, f"{LIVECODEBENCH.repo}@{LIVECODEBENCH.revision}")
    assert [problem.id for problem in read_problems(rows[:3])] == ["test.jsonl 1", "test.jsonl 2", "test2.jsonl 1"]
    assert len(fetch_rows(None)[0]) == 12


def test_unreachable_hub_is_reported() -> None:
    """The tests run with the hub offline."""
    with pytest.raises(UserError, match=r"livecodebench .*cannot be read from the hub here: give --bench-file .*copy"):
        fetch_rows(None)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import sys; sys.executed_pickle = True",)


def stored(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


BAD: dict[str, dict[str, Any]] = {
    "its pickle holds more than a text, and is not executed": {"private_test_cases": stored(pickle.dumps(Malicious()))},
    "its pickle holds more": {"private_test_cases": stored(pickle.dumps(["a"]))},
    "tests in private_test_cases cannot be read (neither a JSON list nor base64)": {"private_test_cases": "$"},
    "cannot be read (Error -3": {"private_test_cases": base64.b64encode(b"no zlib").decode()},
    "cannot be read (cut off, or too large)": {"private_test_cases": packed([])[:20]},
    "cannot be read (pickle exhausted": {"private_test_cases": stored(pickle.dumps("[]")[:-1])},
    "cannot be read (not a list)": {"private_test_cases": stored(pickle.dumps('{"input": 1}'))},
    "the tests in public_test_cases cannot be read (no 'output')": {"public_test_cases": '[{"input": "1"}]'},
    "cannot be read (sequence item 0: expected str": {
        "public_test_cases": '[{"input": 1, "output": "1", "testtype": "stdin"}]'
    },
    "cannot be read (Expecting": {"public_test_cases": "[{]"},
    "surrogates not allowed": {"public_test_cases": json.dumps(cases("stdin", ("\ud800", "")))},
    "line 2 has no question_content": {"question_content": " "},
    "line 2 has no question_id and no private_test_cases": {"question_id": None, "private_test_cases": ""},
    "line 2 has no tests": {"public_test_cases": "[]", "private_test_cases": packed([])},
    "has no func_name in metadata": {"public_test_cases": json.dumps(cases("functional", ("1", "1")))},
    "line 2, metadata, is not valid JSON": {"metadata": "{"},
    "a functional test that is not JSON": {"metadata": '{"func_name": "f"}'},
    "line 2 repeats the question_id 'first'": {"question_id": "first"},
}


@pytest.mark.parametrize("message", BAD)
def test_malformed_rows_are_refused_with_the_line(message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", row(question_id="first"), row(**BAD[message]))
    with pytest.raises(UserError) as refused:
        read_problems(find_rows(file)[0])
    assert message in str(refused.value) and f"{file}, line 2" in str(refused.value)
    assert "\n" not in str(refused.value) and not hasattr(sys, "executed_pickle")


def test_malformed_files_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(livecodebench, "check_isolation", lambda name: None)
    for content, message in {
        b"": "holds no problems",
        b'\n{"question_id": 1,\n': "line 2 is not valid JSON",
        b"[1]": "line 1 has no question_id and no question_content",
        b"\xff\xfe": "line 1 cannot be read as UTF-8",
    }.items():
        (tmp_path / "mine.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_bench("livecodebench", file=tmp_path / "mine.jsonl")
    with pytest.raises(
        UserError, match=r"no file .*nowhere: give a JSONL file with LiveCodeBench's columns, or the fol"
    ):
        load_bench("livecodebench", file=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no file .*test\.jsonl"):
        load_bench("livecodebench", file=tmp_path)


def test_too_many_decompressed_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_tests, "MAX_TEST_BYTES", 1000)
    with pytest.raises(UserError, match="cut off, or too large"):
        read_tests(row(private_test_cases=packed(cases("stdin", ("0" * 2000, "0")))), "line 1")


@given(st.text(), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_texts_survive_all_pickle_protocols(text: str, version: int) -> None:
    assert unpickle_text(pickle.dumps(text, version)) == text


def test_changed_file_stops_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(livecodebench, "check_isolation", lambda name: None)
    file = write(tmp_path / "mine.jsonl", row())
    (bench,) = load_bench(str(file))
    for changed in (
        row(public_test_cases=json.dumps(cases("stdin", ("1 2\n", "4\n")))),
        row(question_id="longer than before"),
    ):
        write(file, changed)
        with pytest.raises(UserError, match="line 1 has changed since the run began"):
            bench.grade(bench.problems[0], response(SUM))
        assert load_bench(str(file))[0].digest != bench.digest
    file.unlink()
    with pytest.raises(UserError, match="line 1 has changed since the run began"):
        bench.grade(bench.problems[0], response(SUM))


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("no code", None),
        ("```python\nfirst\n```\nthen\n```\nsecond\n```\nend", "second"),
        ("```py\na\n\n  b\n```", "a\n\n  b"),
        ("```python\nnot closed", "not closed"),
        ("```\n\n```", None),
        ("x = 1 ```not a fence``` y", None),
        ("1. item\n\n   ```python\n   if x:\n       y\n  z\n   ```", "if x:\n    y\nz"),
        ("````python\n```\ninside\n```\n````", "```\ninside\n```"),
        ("```python title=a.py\na\n```  ", "a"),
    ],
)
def test_the_last_code_block_is_the_program(text: str, program: str | None) -> None:
    assert extract_program(text) == program


LINES = st.text(st.characters(codec="utf-8", exclude_characters="`"), max_size=30)


@given(LINES, LINES, st.lists(LINES, min_size=1).map("\n".join), st.sampled_from(["", "python", "py"]))
def test_any_program_is_found(before: str, after: str, program: str, language: str) -> None:
    text = f"{before}\n```{language}\n{program}\n```\n{after}"
    assert extract_program(text) == (program if program.strip() else None)


NUMBERS = st.lists(st.lists(st.decimals(-(10**9), 10**9, places=3), min_size=1), min_size=1)


@given(NUMBERS, st.sampled_from(["", " ", "\t", "\n", " \n\n"]), st.sampled_from([" ", "  ", "\t"]))
def test_output_ignores_spaces_and_the_form_of_numbers(rows: list[list[Decimal]], around: str, between: str) -> None:
    expected = "\n".join(" ".join(map(str, numbers)) for numbers in rows)
    printed = "\n".join(between.join(f"{number:.6f}" for number in numbers) + " " for numbers in rows)
    assert same_output(f"{around}{expected}{around}", expected)
    assert same_output(f"{around}{printed}{around}", expected)


@given(NUMBERS, st.data())
def test_another_number_is_another_output(rows: list[list[Decimal]], data: st.DataObject) -> None:
    expected = [" ".join(map(str, numbers)) for numbers in rows]
    changed = data.draw(st.integers(0, len(rows) - 1))
    others = [*expected[:changed], f"{expected[changed]} 1", *expected[changed + 1 :]]
    assert not same_output("\n".join(others), "\n".join(expected))
    assert not same_output("\n".join([*expected, "1"]), "\n".join(expected))


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("0.50", "0.5", True),
        ("1e3", "1000", True),
        ("0.333333", "0.3333333", False),
        ("50000000000000000", "50000000000000001", False),
        ("Yes", "YES", False),
        ("a  b", "a b", False),
        ("1 x", "1.0 x", False),
        ("NaN", "nan", False),
        ("sNaN", "1", False),
        ("1e999999999", "2", False),
        ("", "\n", True),
        ("1\r\n2", "1\n2", True),
        ("1\n\n2", "1\n2", False),
    ],
)
def test_output_is_compared_as_in_the_official_grader(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed, expected) is same


@pytest.mark.parametrize(
    ("returned", "expected", "same"),
    [
        *(("1.0", "1", True), ("[1, 2]", "[1,2]", True), ("[2, 1]", "[1, 2]", False), ('"1"', "1", False)),
        *(("null", "null", True), ("NaN", "NaN", False), ("", "1", False)),
        *(("[" * 100_000, "1", False), ("1" * 5000, "1", False)),
    ],
)
def test_values_are_compared_as_json(returned: str, expected: str, same: bool) -> None:
    assert same_value(returned, expected) is same


@requires_isolation
@pytest.mark.parametrize(
    ("program", "rule"),
    [
        (SUM, "passed"),
        ("print(3)", "wrong-answer"),
        ("import sys\nprint(3)\nsys.exit(0)", "wrong-answer"),
        ("import os\nprint(3, flush=True)\nos._exit(0)", "wrong-answer"),
        (f"{SUM}\nimport sys\nsys.exit(1)", "passed"),
        (f"{SUM}\nraise ValueError", "runtime-error"),
        (f"{SUM}\nwhile True: pass", "timeout"),
        ("class Always(str):\n    __eq__ = lambda *_: True\nprint(Always('x'))", "wrong-answer"),
        ("import json\njson.loads = lambda *_: 0\nprint('passed')", "wrong-answer"),
        ("print(len('x' * 10**10))", "runtime-error"),
        ("import os\nwhile True: os.fork()", "runtime-error"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "runtime-error"),
        ("def main(:", "runtime-error"),
    ],
)
def test_grades_of_programs_that_read_input(program: str, rule: str) -> None:
    grade = grade_program(response(program), STDIN, None, QUICK)
    assert (grade.correct, grade.extracted, grade.rule) == (rule == "passed", program, f"code-block/{rule}")


FUNCTION = (ProgramTest("[1, 2]\n3", "[1, 2, 3]"), ProgramTest('["a"]\nnull', '["a", null]'))


@requires_isolation
@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("return [*a, b]", "passed"),
        ("print('noise'); return (*a, b)", "passed"),
        ("return [*a, b] if b else a", "wrong-answer"),
        ("return set(a)", "wrong-answer"),
        ("import sys; sys.exit(0)", "wrong-answer"),
        ("import os; os._exit(0)", "wrong-answer"),
        ("import os; os.write(3, b'[1, 2, 3]'); os._exit(0)", "wrong-answer"),
        ("return input()", "runtime-error"),
        ("while True: pass", "timeout"),
    ],
)
def test_grades_of_functions(body: str, rule: str) -> None:
    method = f"class Solution:\n    def join(self, a: List[int], b: Optional[int]):\n        {body}"
    assert grade_program(response(method), FUNCTION, "join", QUICK).rule == f"code-block/{rule}"


@requires_isolation
def test_plain_functions_numpy_and_missing_names() -> None:
    assert grade_program(response("def join(a, b):\n    return [*a, b]"), FUNCTION, "join", QUICK).correct
    numpy = "import numpy as np\ndef total(a):\n    return np.array(a).sum()"
    assert grade_program(response(numpy), [ProgramTest("[1, 2]", "3")], "total", QUICK).correct
    missing = grade_program(response("class Solution: pass"), FUNCTION, "join", QUICK)
    assert missing.rule == "code-block/runtime-error"
    assert grade_program("I do not know.", FUNCTION, "join", QUICK).rule == "none/no-code"
