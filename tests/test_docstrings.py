"""The examples in docstrings run and print what they show."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ghosttrace"
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    tests = doctest.DocTestFinder().find(import_module(name))
    examples = sum(len(test.examples) for test in tests)
    results = [doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test) for test in tests]
    assert examples > 0 and all(result.failed == 0 for result in results)


def test_there_are_examples() -> None:
    assert {"ghosttrace.law.expiry", "ghosttrace.ablation.run", "ghosttrace.results"} <= set(MODULES)
