"""Problems in the format of LiveCodeBench, and a mark for tests that need a machine that can isolate programs."""

import base64
import json
import pickle
import platform
import re
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from ghosttrace.bench.sandbox import isolation_failure
from ghosttrace.bench.seccomp import ARCHITECTURES


def _reason_to_skip() -> str | None:
    """Return why tests that need isolation are skipped: it fails, and the system's own tools cannot do it either."""
    failure = isolation_failure()
    release = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    if failure is None or platform.machine() not in ARCHITECTURES or release < (5, 14):
        return failure
    namespaces = ("--user", "--map-root-user", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork")
    command = ["unshare", *namespaces, "mount", "-t", "tmpfs", "tmpfs", "/proc"]
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return failure
    return None  # a defect of the sandbox, which the tests must show


_REASON = _reason_to_skip()
requires_isolation = pytest.mark.skipif(
    _REASON is not None, reason=f"this machine cannot isolate generated programs: {_REASON}"
)


def packed(cases: list[dict[str, str]]) -> str:
    """Return tests as LiveCodeBench stores private ones."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def cases(kind: str, *pairs: tuple[str, str]) -> list[dict[str, str]]:
    """Return tests with these inputs and outputs."""
    return [{"input": given, "output": expected, "testtype": kind} for given, expected in pairs]


def row(**changes: Any) -> dict[str, Any]:
    """Return a problem that reads two numbers and asks for their sum, with the columns of LiveCodeBench."""
    return {
        "question_title": "A sum",
        "question_content": "Add two integers.",
        "platform": "atcoder",
        "question_id": "abc_a",
        "contest_id": "abc",
        "contest_date": "2025-01-04T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(cases("stdin", ("1 2\n", "3\n"))),
        "private_test_cases": packed(cases("stdin", ("-5 5\n", "0\n"), ("10 20\n", "30\n"))),
        "metadata": "{}",
    } | changes


def functional_row(**changes: Any) -> dict[str, Any]:
    """Return a problem that asks for a method of `Solution`, with the columns of LiveCodeBench."""
    starter = "class Solution:\n    def pairs(self, numbers: List[int], k: int) -> List[List[int]]:\n        "
    return (
        row(
            question_id="3700",
            platform="leetcode",
            question_content="Return [x, x * k] for every number x.",
            starter_code=starter,
            public_test_cases=json.dumps(cases("functional", ("[1, 2]\n3", "[[1, 3], [2, 6]]"))),
            private_test_cases=packed(cases("functional", ("[]\n1", "[]"), ("[4]\n0", "[[4, 0]]"))),
            metadata=json.dumps({"func_name": "pairs"}),
        )
        | changes
    )


def write(path: Path, *rows: dict[str, Any]) -> Path:
    """Write rows to a JSONL file and return its path."""
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


SUM = "a, b = map(int, input().split())\nprint(a + b)"
PAIRS = "class Solution:\n    def pairs(self, numbers: List[int], k):\n        return [(x, x * k) for x in numbers]"


def response(program: str) -> str:
    """Return a final text with this program."""
    return f"This is my program:\n\n```python\n{program}\n```\n"
