"""Functions that run the command line inside a test."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

from ghosttrace.cli import main as cli
from ghosttrace.errors import UserError

QUICK_ABLATION = ("--bench", "ledger-h1", "--limit", "4", "--arms", "restart", "--batch-size", "3")


def command(*arguments: str) -> int:
    """Run the command line and return its exit code."""
    try:
        cli.app(list(arguments), standalone_mode=False)
    except UserError:
        return 2
    return 0


def ghosttrace(*arguments: str) -> CompletedProcess[str]:
    """Run the entry point of the command line in this process; return exit code, stdout and stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", ["ghosttrace", *arguments]):
        try:
            cli.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    return CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())


def resume(folder: Path, *options: str) -> None:
    """Resume an ablation; raise on invalid input."""
    cli.app(["ablate", "--resume", str(folder), *options], standalone_mode=False)
