"""Data of `experiments/reproduce_paper.py`: rows of OpenMementos, or `story` in the same formats for a rehearsal."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ghosttrace.bench.story import draw_story
from ghosttrace.bench.story_texts import Split
from ghosttrace.data.read import iter_records
from ghosttrace.errors import UserError
from ghosttrace.runs.atomic import commit_file

STREAM = 0x9E9E0D  # of random numbers, apart from those of `story` and its training rows
COLUMNS = ("problem", "response", "domain", "source", "difficulty")
"""Columns of OpenMementos, configuration `default`."""


def sample_rows(source: str, n: int, seed: int) -> list[dict[str, Any]]:
    """Draw `n` rows of a data set without replacement, reading it once; all rows if it has no more.

    The paper does not say which rows it trained on. A uniform sample keeps the shares of the domains.

    Args:
        source: See `ghosttrace.data.read.iter_records`.
        n: Number of rows.
        seed: Random seed.

    Returns:
        The rows in random order, with `COLUMNS`.

    Raises:
        UserError: The source cannot be read, or a row has no problem or no response.
    """
    rng = np.random.default_rng([seed, STREAM])
    kept: list[dict[str, Any]] = []
    for number, row in enumerate(iter_records(source)):
        if not isinstance(row, Mapping) or not {"problem", "response"} <= row.keys():
            raise UserError(f"{source}, row {number} has no problem and response: give rows as in OpenMementos")
        place = number if number < n else int(rng.integers(number + 1))  # a reservoir
        if place < n:
            kept[place : place + 1] = [{name: row.get(name) for name in COLUMNS}]
    return [kept[index] for index in rng.permutation(len(kept))]


def story_rows(n: int, seed: int) -> list[dict[str, Any]]:
    """Return `n` problems of `story`, training split, with perfect responses, as rows of OpenMementos."""
    rows = []
    for problem, blocks, answer in _stories(n, seed, "train"):
        response = f"<think>\n{blocks}</think>\nThe answer is \\boxed{{{answer}}}."
        rows.append(dict(zip(COLUMNS, (problem, response, "math", "story", None), strict=True)))
    return rows


def story_problems(n: int, seed: int) -> list[dict[str, Any]]:
    """Return `n` problems of `story`, test split, with the columns of a contest such as aime24."""
    stories = enumerate(_stories(n, seed, "test"))
    return [{"id": f"{seed}-{number}", "problem": story[0], "answer": story[2]} for number, story in stories]


def _stories(n: int, seed: int, split: Split) -> Iterable[tuple[str, str, int]]:
    """Yield problem, blocks with mementos, and answer."""
    rng = np.random.default_rng([seed, STREAM])
    for _ in range(n):
        story = draw_story(rng, split, "complete", "derived")
        yield story.prompt, story.response.rpartition("Answer: ")[0], story.answer


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write rows to a JSONL file that is complete or does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    commit_file(partial, path)
