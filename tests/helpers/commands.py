"""Running the command line inside a test."""

from pathlib import Path

from ghosttrace.cli import main as cli
from ghosttrace.errors import UserError

QUICK_ABLATION = ("--bench", "ledger-h1", "--limit", "4", "--arms", "restart", "--batch-size", "3")


def command(*arguments: str) -> int:
    """Run the command line as a shell would; return its exit code."""
    try:
        cli.app(list(arguments), standalone_mode=False)
    except UserError:
        return 2
    return 0


def resume(folder: Path, *options: str) -> None:
    """Go on with an ablation; bad input raises."""
    cli.app(["ablate", "--resume", str(folder), *options], standalone_mode=False)
