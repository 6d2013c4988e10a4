"""The package and the command line start without torch and transformers, and every public name still resolves."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ghosttrace as gt
from ghosttrace.ablation import arms
from ghosttrace.auditing import attacks, defences

SLOW_LIBRARIES = {"torch", "transformers", "datasets", "sklearn", "scipy", "pandas", "matplotlib", "pyarrow", "vllm"}
MAX_CPU_SECONDS = 3.0
REPORT_MODULES = (
    "import atexit, json, sys; atexit.register(lambda: print(json.dumps(list(sys.modules)), file=sys.stderr))"
)


def loaded(statement: str) -> tuple[set[str], float]:
    """Run a statement in a new process; return the modules that it loaded and the CPU seconds that it took."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", f"{REPORT_MODULES}\n{statement}"], capture_output=True, text=True, check=True
    )
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return set(json.loads(done.stderr.splitlines()[-1])), seconds


@pytest.mark.parametrize(
    "statement",
    [
        "import ghosttrace",
        "import ghosttrace.cli.main",
        "import sys; sys.argv = ['ghosttrace', '--help']; from ghosttrace.cli.main import main; main()",
        "import sys; sys.argv = ['ghosttrace', 'audit', '--help']; from ghosttrace.cli.main import main; main()",
    ],
)
def test_start_without_slow_libraries(statement: str) -> None:
    modules, seconds = loaded(statement)
    assert "ghosttrace" in modules and not modules & SLOW_LIBRARIES
    assert seconds < MAX_CPU_SECONDS


def test_reports_are_written_without_torch() -> None:
    modules, _ = loaded("import ghosttrace.results")
    assert "ghosttrace.results" in modules and not modules & {"torch", "transformers"}


def test_every_public_name_resolves() -> None:
    for package in (gt, arms, attacks, defences):
        assert all(getattr(package, name) is not None for name in package.__all__)
    assert set(gt.__all__) <= set(dir(gt))
    with pytest.raises(AttributeError, match="has no attribute 'Ablate'"):
        gt.Ablate  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_read_the_same_names() -> None:
    tree = ast.parse(Path(gt.__file__).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    names = {alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == set(gt.__all__)


@pytest.mark.parametrize("classes", [gt.ARMS, gt.ATTACKS, gt.DEFENCES], ids=["arms", "attacks", "defences"])
def test_methods_are_listed_under_their_own_names(classes: dict[str, type[gt.Arm]]) -> None:
    assert len(classes) > 5 and all(kind.name == name for name, kind in classes.items())
