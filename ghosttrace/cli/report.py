"""The command `ghosttrace report`: one HTML page of any finished run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ghosttrace.results import open_run


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run: ablate, bits, probe, patch or audit.")],
) -> None:
    """Write report.html into the folder of a finished run: one page that needs no other file and no network."""
    Console().print("Written to", escape(str(open_run(run).report())), soft_wrap=True)
