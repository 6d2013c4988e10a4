"""The command `ghosttrace info`: describe a model, and what its law erases from a trace."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ghosttrace.cli.options import (
    DelimiterMapping,
    Delimiters,
    Format,
    KeepLast,
    LawSpec,
    OutputFormat,
    parse_delimiter_mapping,
)
from ghosttrace.cli.output import print_rows, print_tables
from ghosttrace.errors import UserError

if TYPE_CHECKING:
    from ghosttrace.law.expiry import Policy
    from ghosttrace.law.law import Law


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
    law: LawSpec = None,
    format: Format = OutputFormat.table,
) -> None:
    """Describe a model, and what its law erases from a trace: block by block, or erasure by erasure."""
    from ghosttrace.data.info import model_info, trace_info
    from ghosttrace.data.read import read_traces
    from ghosttrace.law.chat import Chat
    from ghosttrace.law.parse import MEMENTO, is_memento, parse_law
    from ghosttrace.model.erasure_config import resolve_policy
    from ghosttrace.report.info import model_entry, model_findings, model_table, trace_findings, trace_rows, trace_table

    given = {"mask_delimiters": mask_delimiters, "keep_last_n_blocks": keep_last_n_blocks}
    given_names = [name for name, value in (*given.items(), ("map_delimiters", map_delimiters)) if value is not None]
    if given_names and not is_memento(law):
        raise UserError(f"the law {law} replaces Memento's policy: leave out {', '.join(given_names)}")
    described = model_info(model, parse_delimiter_mapping(map_delimiters), **given)
    texts = [] if trace is None else read_traces(trace)
    spec, erased = law or described.law, []
    if texts:
        if is_memento(spec):
            rule: Law | Policy = resolve_policy(described.recorded_policy, **given)
        else:
            rule = parse_law(str(spec), Chat.from_tokenizer(described.tokenizer))
        erased = [trace_info(described, text, rule) for text in texts]
    if format is not OutputFormat.table:
        entry = model_entry(described)
        more = {"model": entry, "law": spec or MEMENTO}
        print_rows(format, model_findings(described), trace_rows(erased) if texts else [entry], more)
        return
    print_tables(model_findings(described), [model_table(described)])
    for number, item in enumerate(erased):
        name = [f"Trace {number}:"] if len(erased) > 1 else []
        print_tables([*name, *trace_findings(item)], [trace_table(described, item)])
