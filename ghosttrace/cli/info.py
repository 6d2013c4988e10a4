"""The command `ghosttrace info`: what a model is, and what the law erases from a trace."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ghosttrace.cli.options import DelimiterMapping, Delimiters, KeepLast, parse_delimiter_mapping
from ghosttrace.data.info import model_info, trace_info
from ghosttrace.data.read import read_traces
from ghosttrace.model.checkpoint import resolve_policy
from ghosttrace.report.info import model_table, trace_table


def info(
    model: Annotated[str, typer.Argument(help="Bundled name, folder or hub id; weights are not loaded.")],
    trace: Annotated[Path | None, typer.Option(help="A trace to read by the law: JSON, JSONL or text.")] = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    map_delimiters: DelimiterMapping = None,
) -> None:
    """Say what a model is, and what the law erases from a trace, block by block."""
    console = Console()
    described = model_info(model, parse_delimiter_mapping(map_delimiters))
    console.print(model_table(described))
    if trace is None:
        return
    policy = resolve_policy(described.policy, mask_delimiters=mask_delimiters, keep_last_n_blocks=keep_last_n_blocks)
    for text in read_traces(trace):
        console.print(trace_table(described, trace_info(described, text, policy)))
