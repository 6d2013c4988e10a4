"""The command `ghosttrace report`: write the HTML report of a finished run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of ablate, bits, probe, patch or audit.")],
) -> None:
    """Write report.html, a self-contained HTML page, into the folder of a finished run."""
    from ghosttrace.results import open_run

    Console().print("Written to", escape(str(open_run(run).report())), soft_wrap=True)
