"""Benchmarks with published problems: contests, MATH-500, GPQA-Diamond, and any local JSONL file.

Problems are read from a given file, else from the folder in the environment variable GHOSTTRACE_DATA, else from the
Hugging Face hub at a pinned commit. The texts belong to their authors and are never part of this project.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ghosttrace.bench.benchmark import Bench, Problem, Protocol
from ghosttrace.bench.grading import GRADERS
from ghosttrace.data.user_json import parse_json
from ghosttrace.errors import HUB_ERRORS, UserError
from ghosttrace.model.prompts import CHOICE_TEMPLATE, MATHEMATICS_TEMPLATE

GradingRule = Literal["integer", "mathematics", "choice"]
CHOICE_LETTERS = "ABCDEFGHIJ"
DATA_FOLDER_VARIABLE = "GHOSTTRACE_DATA"
MAX_CONTEST_PROBLEMS = 53  # the paper samples contests of at most this many problems 64 times, larger sets twice


@dataclass(frozen=True)
class HubSource:
    """Location of a benchmark's problems on the Hugging Face hub.

    Attributes:
        repo: Id of the data set.
        rule: Grading rule (a key of `ghosttrace.bench.grading.GRADERS`).
        size: Number of problems.
        revision: Pinned commit. None means the newest commit, which is recorded with the run.
        split: Split of the data set.
        config: Configuration of the data set; None means the default.
    """

    repo: str
    rule: GradingRule
    size: int
    revision: str | None
    split: str = "train"
    config: str | None = None


HUB_SOURCES = {
    "aime24": HubSource("HuggingFaceH4/aime_2024", "integer", 30, "2fe88a2f1091d5048c0f36abc874fb997b3dd99a"),
    "aime25": HubSource("yentinglin/aime_2025", "integer", 30, "6f71d77b0b89b9dabe07ab466c51df33f514df7f"),
    "aime26": HubSource("MathArena/aime_2026", "integer", 30, "d2de22f3c656b4f56cf8981212186377d1e23bc3"),
    "hmmt-feb23": HubSource("MathArena/hmmt_feb_2023", "mathematics", 30, None),
    "hmmt-feb24": HubSource("MathArena/hmmt_feb_2024", "mathematics", 30, None),
    "hmmt-feb25": HubSource("MathArena/hmmt_feb_2025", "mathematics", 30, "6fdc4277120810ff75aa22d2d5489b91f7a262a1"),
    "hmmt-feb26": HubSource("MathArena/hmmt_feb_2026", "mathematics", 33, "02fba4f74d8e68e73e66a02d540fd979c05c274c"),
    "hmmt-nov25": HubSource("MathArena/hmmt_nov_2025", "mathematics", 30, "118dbfb45c4c9467c672268ed55166642897aa46"),
    "brumo25": HubSource("MathArena/brumo_2025", "mathematics", 30, "6de9bc0987f5710c6376ee980e1483dbeb55cfda"),
    "smt25": HubSource("MathArena/smt_2025", "mathematics", 53, "d8e99d83f1583842f46d4953cd960eea5d887e45"),
    "cmimc25": HubSource("MathArena/cmimc_2025", "mathematics", 40, None),
    "math500": HubSource(
        "HuggingFaceH4/MATH-500", "mathematics", 500, "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", split="test"
    ),
    "gpqa-diamond": HubSource(
        "Idavidrein/gpqa", "choice", 198, "633f5ee89ab8ad4522a9f850766b73f62147ffdd", config="gpqa_diamond"
    ),
}


def load_contest(name: str, limit: int | None = None, file: Path | None = None) -> Bench:
    """Load a benchmark of `HUB_SOURCES`.

    Args:
        name: Key of `HUB_SOURCES`, such as `aime24`.
        limit: Number of problems, counted from the first. None means all.
        file: JSONL file to read the problems from. None means the folder in GHOSTTRACE_DATA, else the hub.

    Raises:
        UserError: The problems cannot be read.
    """
    source = HUB_SOURCES[name]
    file = file or data_file(name)
    if file is not None:
        problems, origin = read_problems(file), _origin(file)
    else:
        problems, origin = fetch_problems(name, source)
    return _bench(name, problems, source.rule, origin, limit, source.size)


def load_jsonl_bench(file: Path, limit: int | None = None) -> Bench:
    """Load a benchmark from a JSONL file with `id`, `problem` and `answer` on each line, named after the file.

    The answers determine the grading rule: `integer` if all are whole numbers, `choice` if all are single letters from
    A to J, else `mathematics`. Lines with the same optional `cluster`, such as variants of one problem, are one unit of
    the statistics.

    Args:
        file: The JSONL file.
        limit: Number of problems, counted from the first. None means all.

    Raises:
        UserError: The file cannot be read or a line is invalid.
    """
    problems = read_problems(file)
    rule: GradingRule = "mathematics"
    if all(problem.answer.isdecimal() for problem in problems):
        rule = "integer"
    elif all(len(problem.answer) == 1 and problem.answer in CHOICE_LETTERS for problem in problems):
        rule = "choice"
    return _bench(file.stem, problems, rule, _origin(file), limit)


def _bench(
    name: str, problems: list[Problem], rule: GradingRule, origin: str, limit: int | None, size: int | None = None
) -> Bench:
    template, grade = CHOICE_TEMPLATE if rule == "choice" else MATHEMATICS_TEMPLATE, GRADERS[rule]
    return Bench(
        name=name,
        problems=tuple(replace(problem, prompt=template.fill(problem.prompt)) for problem in problems[:limit]),
        protocol=protocol(len(problems)),
        grade=lambda problem, text: grade(problem.answer, text),
        origin=origin,
        template=template,
        full_size=size,
    )


def protocol(problems: int) -> Protocol:
    """Return the sampling protocol of the Memento paper for a benchmark with this number of problems."""
    return Protocol(0.6, 32_000, 64 if problems <= MAX_CONTEST_PROBLEMS else 2, top_p=0.95, top_k=20)


def data_file(name: str) -> Path | None:
    """Return the benchmark's JSONL file in the folder GHOSTTRACE_DATA, or None if there is none."""
    folder = os.environ.get(DATA_FOLDER_VARIABLE)
    paths = [Path(folder) / "bench" / f"{name}.jsonl", Path(folder) / f"{name}.jsonl"] if folder else []
    return next((path for path in paths if path.is_file()), None)


def _origin(file: Path) -> str:
    return f"{file.name}, sha256 {sha256(file.read_bytes()).hexdigest()}"


def read_problems(file: Path) -> list[Problem]:
    """Read problems from a JSONL file with one object per line: `id`, `problem`, `answer` and optionally `cluster`.

    Raises:
        UserError: The file cannot be read, or a line is invalid; the message names the line.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # splitlines would also split at U+2028, which JSON allows
    except FileNotFoundError as error:
        raise UserError(f"no file {file}: give a JSONL file with id, problem and answer on each line") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as UTF-8 text ({error}): give a JSONL file") from error
    located = [(f"{file}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    return _problems(((location, parse_json(line, location)) for location, line in located), str(file))


def _problems(rows: Iterable[tuple[str, Any]], source: str) -> list[Problem]:
    """Convert rows, given as (location for error messages, row), to problems."""
    problems: dict[str, Problem] = {}
    for location, row in rows:
        if not isinstance(row, Mapping):
            raise UserError(f"{location} is not a JSON object: write {{'id': …, 'problem': …, 'answer': …}}")
        missing = [key for key in ("id", "problem", "answer") if row.get(key) is None or not str(row[key]).strip()]
        if missing:
            raise UserError(f"{location} has no {' and no '.join(missing)}: every line needs id, problem and answer")
        cluster = row.get("cluster")
        if cluster is not None and (
            not isinstance(cluster, str | int) or isinstance(cluster, bool) or not str(cluster).strip()
        ):
            raise UserError(f"{location} has the cluster {cluster!r}: give a name, or leave cluster out")
        problem = Problem(
            str(row["id"]),
            str(row["problem"]),
            str(row["answer"]).strip(),
            None if cluster is None else str(cluster).strip(),
        )
        if problem.id in problems:
            raise UserError(f"{location} repeats the id {problem.id!r}: give every problem a unique id")
        problems[problem.id] = problem
    if not problems:
        raise UserError(f"{source} holds no problems: write one JSON object per line with id, problem and answer")
    return list(problems.values())


def fetch_problems(name: str, source: HubSource) -> tuple[list[Problem], str]:
    """Download a benchmark's problems from the hub, or read them from its local cache.

    Args:
        name: Name of the benchmark for error messages.
        source: Data set, split and revision.

    Returns:
        The problems, and their origin as `repo@commit`.

    Raises:
        UserError: The hub cannot be reached, the data set requires access, or a row is invalid.
    """
    import datasets  # slow to import, and only needed here
    from huggingface_hub import HfApi

    try:
        commit = source.revision or HfApi().dataset_info(source.repo).sha
        rows = datasets.load_dataset(source.repo, source.config, split=source.split, revision=commit)
    except (*HUB_ERRORS, ValueError, datasets.exceptions.DatasetsError) as error:
        if "gated dataset" in str(error).lower():
            raise UserError(
                f"{name} is gated: ask for access at https://huggingface.co/datasets/{source.repo}, "
                "then log in with `hf auth login`"
            ) from error
        raise UserError(
            f"{name} ({source.repo}) cannot be read from the hub here: give --bench-file FILE.jsonl with id, problem "
            f"and answer on each line, or set {DATA_FOLDER_VARIABLE} to a folder that holds {name}.jsonl"
        ) from error
    convert = _multiple_choice if source.rule == "choice" else _question
    problems = _problems(((f"{source.repo}, row {i}", convert(row, i)) for i, row in enumerate(rows)), name)
    return problems, f"{source.repo}@{commit}"


def _question(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Convert a row of a hub data set to common field names; fields that are missing become None."""
    # MathArena calls the id problem_idx, MATH-500 unique_id.
    key = next((row[name] for name in ("unique_id", "problem_idx", "id") if row.get(name) is not None), number)
    return {"id": key, "problem": row.get("problem"), "answer": row.get("answer")}


def _multiple_choice(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Convert a GPQA row, with its four answers in a random order that is seeded by the question's text."""
    names = ("Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)))
    if any(row.get(name) is None for name in names):
        return {"id": number}
    question, *answers = (str(row[name]).strip() for name in names)
    rng = np.random.default_rng(list(sha256(question.encode()).digest()))
    order = rng.permutation(len(answers))
    choices = "\n".join(f"{CHOICE_LETTERS[i]}) {answers[index]}" for i, index in enumerate(order))
    correct = CHOICE_LETTERS[int(np.flatnonzero(order == 0)[0])]
    return {"id": row.get("Record ID") or number, "problem": f"{question}\n\n{choices}", "answer": correct}
