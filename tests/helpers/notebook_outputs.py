"""Comparison of the outputs of two executions of a notebook, with a tolerance for numbers."""

import math
import re
from typing import Any

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")
RELATIVE = 1e-6
MIN_DECIMALS = 2  # numbers with fewer decimals are counts and shares of few problems, and must be equal


def shown(output: Any) -> dict[str, str]:
    """Return what an output shows, by kind: its texts, and of an image only that it is one."""
    if output["output_type"] == "stream":
        return {output["name"]: output["text"]}
    if output["output_type"] == "error":
        return {"error": f"{output['ename']}: {output['evalue']}"}
    return {kind: text if kind.startswith("text/") else "" for kind, text in output["data"].items()}


def difference(expected: str, found: str) -> str | None:
    """Return the first difference between two texts, or None if they are equal up to small differences of numbers.

    White space is not compared, because the width of a column depends on its numbers.
    """
    words, others = (" ".join(NUMBER.sub("#", text).split()) for text in (expected, found))
    if words != others:
        return f"{words!r} became {others!r}"
    for number, other in zip(NUMBER.findall(expected), NUMBER.findall(found), strict=True):
        if not close(number, other):
            return f"{number} became {other}"
    return None


def close(number: str, other: str) -> bool:
    """Return whether two printed numbers are equal up to `RELATIVE`, or to one unit of the last of several decimals."""
    decimals = len(number.partition(".")[2].partition("e")[0])
    unit = 10.0**-decimals if decimals >= MIN_DECIMALS and "e" not in number else 0.0
    return math.isclose(float(number), float(other), rel_tol=RELATIVE, abs_tol=1.001 * unit)
