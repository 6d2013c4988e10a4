"""LiveCodeBench v6: programming problems with hidden tests, from the hub or from a file with the same columns.

The data set defines release v6 as all of its six files together. The texts and tests belong to their authors and are
never part of this project. The files are large, so only the place of a row is kept; its tests are read again when a
response is graded.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ghosttrace.bench.benchmark import Bench, Grade, Problem
from ghosttrace.bench.contests import DATA_FOLDER_VARIABLE, data_file, protocol
from ghosttrace.bench.program_tests import ProblemTests, check_values, read_tests
from ghosttrace.bench.programs import grade_program
from ghosttrace.bench.sandbox import check_isolation
from ghosttrace.data.user_json import parse_json
from ghosttrace.errors import HUB_ERRORS, UserError
from ghosttrace.model.prompts import PROGRAM_TEMPLATE


@dataclass(frozen=True)
class Release:
    """A release of LiveCodeBench on the hub.

    Attributes:
        name: Name of the benchmark.
        repo: Id of the data set.
        revision: Pinned commit.
        files: The files that make up the release, in order.
        size: Number of problems.
    """

    name: str
    repo: str
    revision: str
    files: tuple[str, ...]
    size: int


LIVECODEBENCH = Release(
    "livecodebench",
    "livecodebench/code_generation_lite",
    "0fe84c3912ea0c4d4a78037083943e8f0c4dd505",
    ("test.jsonl", "test2.jsonl", "test3.jsonl", "test4.jsonl", "test5.jsonl", "test6.jsonl"),
    1055,
)
"""Release v6. Each release added one file to those before."""

_FILES = f"{LIVECODEBENCH.files[0]} to {LIVECODEBENCH.files[-1]}"
COLUMNS = ("question_id", "question_content", "public_test_cases", "private_test_cases")


@dataclass(frozen=True)
class Row:
    """Where the row of a problem lies.

    Attributes:
        file: The JSONL file.
        number: Number of the line, from 1.
        start: Offset of the line in bytes.
        size: Length of the line in bytes.
    """

    file: Path
    number: int
    start: int
    size: int

    def read(self) -> dict[str, Any]:
        """Return the row.

        Raises:
            UserError: The file cannot be read, or the row is invalid.
        """
        try:
            with self.file.open("rb") as file:
                file.seek(self.start)
                line = file.read(self.size).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self} cannot be read as UTF-8 text ({error}): give a JSONL file") from error
        row = parse_json(line, str(self))
        missing = [name for name in COLUMNS if not (isinstance(row, dict) and str(row.get(name) or "").strip())]
        if missing:
            raise UserError(f"{self} has no {' and no '.join(missing)}: every line needs the columns of LiveCodeBench")
        return dict(row)

    def read_again(self, label: str) -> ProblemTests:
        """Return the tests of the row, which were labelled like this when the benchmark was loaded.

        Raises:
            UserError: They are not the same ones.
        """
        changed = UserError(f"{self} has changed since the run began: restore the file, then go on with --resume")
        try:
            tests = read_tests(self.read(), str(self))
        except UserError as error:
            raise changed from error
        if tests.label != label:
            raise changed
        return tests

    def __str__(self) -> str:
        return f"{self.file}, line {self.number}"


def load_livecodebench(name: str = LIVECODEBENCH.name, limit: int | None = None, file: Path | None = None) -> Bench:
    """Load LiveCodeBench v6.

    Args:
        name: Name of the benchmark in the results.
        limit: Number of problems, counted from the first. None means all.
        file: JSONL file with LiveCodeBench's columns, or a folder with all files of the release. None means the file
            `livecodebench.jsonl` in the folder GHOSTTRACE_DATA, else the hub.

    Raises:
        UserError: This machine cannot isolate generated programs, or the problems cannot be read.
    """
    check_isolation(name)
    path = file or data_file(LIVECODEBENCH.name)
    rows, total, origin = fetch_rows(limit) if path is None else find_rows(path)
    rows = rows[:limit]
    problems = read_problems(rows)
    row_of = {problem.id: row for problem, row in zip(problems, rows, strict=True)}

    def grade(problem: Problem, text: str) -> Grade:
        tests = row_of[problem.id].read_again(problem.answer)
        return grade_program(text, tests.cases, tests.function)

    return Bench(
        name=name,
        problems=tuple(problems),
        protocol=protocol(total),
        grade=grade,
        origin=origin,
        template=PROGRAM_TEMPLATE,
        full_size=LIVECODEBENCH.size if name == LIVECODEBENCH.name else None,
    )


def has_livecodebench_columns(file: Path) -> bool:
    """Return whether the first line of a JSONL file has columns of LiveCodeBench instead of id, problem and answer."""
    try:
        with file.open("rb") as lines:
            row = json.loads(next(line for line in lines if line.strip()))
    except (OSError, ValueError, RecursionError, StopIteration):
        return False
    return isinstance(row, dict) and bool(set(COLUMNS) & set(row)) and not {"id", "problem", "answer"} <= set(row)


def count_rows(file: Path) -> int:
    """Return the number of problems in a JSONL file."""
    return sum(1 for _ in _lines(file))


def find_rows(path: Path) -> tuple[list[Row], int, str]:
    """Find the rows of a JSONL file, or of the files of release v6 in a folder.

    Returns:
        The rows, their number, and their origin with a digest.

    Raises:
        UserError: A file cannot be read, or holds no problems.
    """
    files = [path / name for name in LIVECODEBENCH.files] if path.is_dir() else [path]
    try:
        rows = [row for file in files for row in _lines(file)]
        digest = sha256()
        for file in files:
            with file.open("rb") as stream:
                while chunk := stream.read(2**20):
                    digest.update(chunk)
    except FileNotFoundError as error:
        raise UserError(
            f"no file {error.filename}: give a JSONL file with LiveCodeBench's columns, or the folder of {_FILES}"
        ) from error
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read ({error.strerror}): give a JSONL file") from error
    if not rows:
        raise UserError(f"{path} holds no problems: write one JSON object per line with LiveCodeBench's columns")
    return rows, len(rows), f"{path.name}, sha256 {digest.hexdigest()}"


def fetch_rows(limit: int | None) -> tuple[list[Row], int, str]:
    """Download as many files of release v6 as the first `limit` problems take, or find them in the hub's cache.

    Raises:
        UserError: The hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    rows: list[Row] = []
    for name in LIVECODEBENCH.files:
        if limit is not None and len(rows) >= limit:
            break
        try:
            file = hf_hub_download(LIVECODEBENCH.repo, name, repo_type="dataset", revision=LIVECODEBENCH.revision)
        except (*HUB_ERRORS, ValueError) as error:
            raise UserError(
                f"{LIVECODEBENCH.name} ({LIVECODEBENCH.repo}) cannot be read from the hub here: give --bench-file with "
                f"a copy, a .jsonl file or the folder of {_FILES}, or set {DATA_FOLDER_VARIABLE} to a folder with "
                f"{LIVECODEBENCH.name}.jsonl"
            ) from error
        rows += _lines(Path(file))
    return rows, LIVECODEBENCH.size, f"{LIVECODEBENCH.repo}@{LIVECODEBENCH.revision}"


def _lines(file: Path) -> Iterator[Row]:
    """Find the lines of a file that are not blank."""
    start = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield Row(file, number, start, len(line))
            start += len(line)


def read_problems(rows: list[Row]) -> list[Problem]:
    """Read problems and check their tests.

    Raises:
        UserError: A row is invalid; the message names the line.
    """
    problems: dict[str, Problem] = {}
    for row in rows:
        content, location = row.read(), str(row)
        id_, tests = str(content["question_id"]), read_tests(content, location)
        check_values(tests, location)
        if id_ in problems:
            raise UserError(f"{location} repeats the question_id {id_!r}: give every problem a unique question_id")
        problems[id_] = Problem(id_, PROGRAM_TEMPLATE.fill(_task(content)), tests.label)
    return list(problems.values())


def _task(row: Mapping[str, Any]) -> str:
    """Return the problem's text, with the code to begin with or how the program reads and writes."""
    text = str(row["question_content"]).strip()
    if starter := str(row.get("starter_code") or "").strip():
        return f"{text}\n\nComplete this Python code:\n\n```python\n{starter}\n```"
    return f"{text}\n\nWrite a Python program that reads the input from stdin and prints the answer to stdout."
