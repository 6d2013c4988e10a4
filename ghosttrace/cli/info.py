"""The command `ghosttrace info`: describe a model, and what its policy erases from a trace."""

from pathlib import Path
from typing import Annotated

import typer

from ghosttrace.cli.options import DelimiterMapping, Delimiters, KeepLast, parse_delimiter_mapping
from ghosttrace.cli.output import print_tables


def info(
    model: Annotated[
        str, typer.Argument(help="Bundled name, folder or hub id of the model; its weights are not loaded.")
    ],
    trace: Annotated[
        Path | None,
        typer.Option(help="JSON, JSONL or text file with traces to describe. Default: only the model is described."),
    ] = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    map_delimiters: DelimiterMapping = None,
) -> None:
    """Describe a model, and what its policy erases from a trace, block by block."""
    from ghosttrace.data.info import model_info, trace_info
    from ghosttrace.data.read import read_traces
    from ghosttrace.model.checkpoint import resolve_policy
    from ghosttrace.report.info import model_findings, model_table, trace_findings, trace_table

    described = model_info(model, parse_delimiter_mapping(map_delimiters))
    print_tables(model_findings(described), [model_table(described)])
    if trace is None:
        return
    policy = resolve_policy(described.policy, mask_delimiters=mask_delimiters, keep_last_n_blocks=keep_last_n_blocks)
    for text in read_traces(trace):
        erased = trace_info(described, text, policy)
        print_tables(trace_findings(erased), [trace_table(described, erased)])
