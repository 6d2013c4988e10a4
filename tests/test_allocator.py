"""The allocator settings of the command line: fewer page faults, and the user's own settings are left alone."""

import os
import platform
import subprocess
import sys

import pytest

from ghosttrace.cli import allocator, main

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")

PROGRAM = """
import resource, numpy
from ghosttrace.cli.allocator import keep_freed_memory
if {keep}:
    keep_freed_memory()
for _ in range(20):
    numpy.ones(8_000_000)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(keep: bool, **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    program = PROGRAM.format(keep=keep)
    environment |= {"NUMPY_MADVISE_HUGEPAGE": "0"}  # pages of one size, so that faults count memory
    done = subprocess.run([sys.executable, "-c", program], env=clean | environment, capture_output=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_used_again() -> None:
    """Each of 20 arrays has 15,625 pages of 4 kB."""
    kept, plain = page_faults(True), page_faults(False)
    assert kept < plain / 2


def test_settings_of_the_user_are_left_alone() -> None:
    assert page_faults(True, MALLOC_ARENA_TEST="8") == pytest.approx(page_faults(False), rel=0.2)


@pytest.mark.parametrize(("command", "kept"), [("bits", True), ("sft", True), ("ablate", False), ("serve", False)])
def test_commands_that_keep_freed_memory(command: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: calls.append(True))
    with pytest.raises(SystemExit):
        main.app([command, "--help"])
    assert calls == [True] * kept
