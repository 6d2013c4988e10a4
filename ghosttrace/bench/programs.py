"""Grade programs: find the program in a response, run it on all tests of its problem, and compare the outputs.

The comparison follows LiveCodeBench's own grader. A program that reads standard input is right if it prints the
expected lines: the same text, or the same decimal numbers, spaces at both ends aside. A function is right if it returns
the expected value. The first test that fails decides.
"""

import json
import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from ghosttrace.bench.benchmark import Grade
from ghosttrace.bench.sandbox import DEFAULT_LIMITS, Limits, Sandbox, SandboxError
from ghosttrace.errors import UserError

_FENCE = re.compile(r"([ \t]*)(`{3,})([^`]*)")
_REASONS = {"error": "runtime-error", "timeout": "timeout", "output": "wrong-answer"}


class ProgramTest(NamedTuple):
    """One test of a program.

    Attributes:
        input: Standard input, or one argument as JSON on each line.
        output: The expected standard output, or the expected value as JSON.
    """

    input: str
    output: str


def extract_program(text: str) -> str | None:
    """Return the content of the last fenced code block, without its indentation, or None if there is none.

    Args:
        text: The response after `</think>`. A block that is not closed ends with the text.
    """
    fence, indent, blocks = "", 0, list[list[str]]()
    for line in text.split("\n"):
        match = _FENCE.fullmatch(line.rstrip())
        if fence and match and len(match[2]) >= len(fence) and not match[3]:
            fence = ""
        elif fence:
            blocks[-1].append(line[min(indent, len(line) - len(line.lstrip(" \t"))) :])
        elif match:
            fence, indent = match[2], len(match[1])
            blocks.append([])
    program = "\n".join(blocks[-1]) if blocks else ""
    return program if program.strip() else None


def same_output(printed: str, expected: str) -> bool:
    """Return whether a program printed the expected lines."""
    lines, others = ([line.strip() for line in text.strip().split("\n")] for text in (printed, expected))
    return len(lines) == len(others) and all(map(_same_line, lines, others))


def _same_line(line: str, other: str) -> bool:
    if line == other:
        return True
    try:
        return [Decimal(word) for word in line.split()] == [Decimal(word) for word in other.split()]
    except InvalidOperation:  # a word is not a number, or is a signalling NaN, which compares with nothing
        return False


def same_value(returned: str, expected: str) -> bool:
    """Return whether two JSON values are equal as Python compares them, so that 1, 1.0 and true are."""
    try:
        return bool(json.loads(returned) == json.loads(expected))
    except (ValueError, RecursionError):
        return False


def grade_program(
    text: str, tests: Iterable[ProgramTest], function: str | None, limits: Limits = DEFAULT_LIMITS
) -> Grade:
    """Grade a response by running its program on the tests, in order, until one fails.

    Args:
        text: The response after `</think>`.
        tests: All tests of the problem.
        function: The function, or the method of `Solution`, that a test calls. None if the program reads standard
            input and writes standard output.
        limits: Limits of every test.

    Returns:
        The grade. `extracted` is the program. `rule` is `none/no-code`, or `code-block/` and `passed`, `wrong-answer`,
        `runtime-error` or `timeout`.

    Raises:
        UserError: The sandbox stopped working.
    """
    program = extract_program(text)
    if program is None:
        return Grade(False, None, "none/no-code")
    equal = same_value if function else same_output
    try:
        with Sandbox(program, function, limits) as sandbox:
            for test in tests:
                status, output = sandbox.run(test.input)
                if status != "ok":
                    return Grade(False, program, f"code-block/{_REASONS[status]}")
                if not equal(output.decode(errors="replace"), test.output):
                    return Grade(False, program, "code-block/wrong-answer")
    except SandboxError as error:
        raise UserError(
            f"the sandbox of a generated program stopped working ({error}): free some memory, then go on with --resume"
        ) from error
    return Grade(True, program, "code-block/passed")
