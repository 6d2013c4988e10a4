"""The tests of a LiveCodeBench problem, read from the columns of its row without executing anything in them."""

import base64
import binascii
import json
import pickletools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ghosttrace.bench.programs import ProgramTest
from ghosttrace.data.user_json import parse_json
from ghosttrace.errors import UserError

MAX_TEST_BYTES = 2**31  # of the decompressed tests of one problem
_TEXT = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_FRAMING = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}


@dataclass(frozen=True)
class ProblemTests:
    """The tests of one problem.

    Attributes:
        cases: Public tests, then private ones.
        function: The method of `Solution` that a test calls. None if the program reads standard input.
    """

    cases: tuple[ProgramTest, ...]
    function: str | None

    @property
    def label(self) -> str:
        """The number and the SHA-256 of the tests: the `answer` of the problem."""
        digest = sha256(repr(self.function).encode())
        for case in self.cases:
            for text in case:  # with its length, so that no other cases have the same digest
                content = text.encode()
                digest.update(len(content).to_bytes(8))
                digest.update(content)
        return f"{len(self.cases)} tests, sha256 {digest.hexdigest()}"


def read_tests(row: Mapping[str, Any], location: str) -> ProblemTests:
    """Read the tests of a row.

    Args:
        row: The row, with the columns `public_test_cases`, `private_test_cases` and `metadata`.
        location: File and line, for error messages.

    Raises:
        UserError: The tests, or the name of the function, cannot be read.
    """
    cases, kinds = list[ProgramTest](), set[str]()
    for column in ("public_test_cases", "private_test_cases"):
        try:
            for case in _decode(row[column]):
                cases.append(ProgramTest(case["input"], case["output"]))
                kinds.add(case["testtype"])
                "".join(cases[-1]).encode()  # both are text, and can be written
        except (ValueError, TypeError, KeyError, RecursionError, zlib.error) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise UserError(
                f"{location}: the tests in {column} cannot be read ({reason}): give a JSON list of objects with input, "
                "output and testtype, or what LiveCodeBench makes of it with pickle, zlib and base64"
            ) from error
    metadata = row.get("metadata") or {}
    if isinstance(metadata, str):
        metadata = parse_json(metadata, f"{location}, metadata,")
    function = metadata.get("func_name") if isinstance(metadata, dict) else None
    if not cases or (function is None and "functional" in kinds):
        missing = "func_name in metadata, which functional tests call" if cases else "tests"
        raise UserError(f"{location} has no {missing}: copy the whole row from LiveCodeBench")
    return ProblemTests(tuple(cases), None if function is None else str(function))


def check_values(tests: ProblemTests, location: str) -> None:
    """Check that the arguments and the expected values of functional tests are JSON.

    Raises:
        UserError: They are not.
    """
    try:
        for case in tests.cases if tests.function else ():
            for text in (*case.input.split("\n"), case.output):
                json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{location} has a functional test that is not JSON ({error}): give one argument on each line of input, "
            "and the value as output"
        ) from error


def _decode(column: Any) -> list[Any]:
    """Decode a column of tests: a JSON list, or such a list as text in a pickle that is compressed and in base64."""
    if isinstance(column, str) and not column.lstrip().startswith("["):
        try:
            stream = zlib.decompressobj()
            content = stream.decompress(base64.b64decode(column, validate=True), MAX_TEST_BYTES)
        except binascii.Error as error:
            raise ValueError("neither a JSON list nor base64") from error
        if not stream.eof:
            raise ValueError("cut off, or too large")
        column = unpickle_text(content)
    cases = json.loads(column) if isinstance(column, str) else column
    if not isinstance(cases, list):
        raise ValueError("not a list")
    return cases


def unpickle_text(content: bytes) -> str:
    """Return the text in a pickle that holds nothing else, without executing the pickle.

    A pickle is a program that can import and call anything. So this only lists its instructions, and accepts the one
    that holds a text beside those that frame it.

    Raises:
        ValueError: The pickle is damaged, or holds anything but one text.
    """
    instructions = [(code.name, argument) for code, argument, _ in pickletools.genops(content)]
    texts = [argument for name, argument in instructions if name in _TEXT]
    if len(texts) != 1 or not {name for name, _ in instructions} <= _TEXT | _FRAMING:
        raise ValueError("its pickle holds more than a text, and is not executed")
    return str(texts[0])
